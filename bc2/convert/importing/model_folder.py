"""A model's folder as Hugging Face lays it out: which files count, and that they are its own.

What others wrote is not trusted: no name leaves the folder, no link is followed but those of the
hub's own cache, and nothing is read that has an absurd size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any

from bc2.errors import DataError, from_os_error

CONFIG = "config.json"
ADAPTER = "adapter_config.json"

#: Bytes of the largest tokenizer that is read (one of 250,000 pieces has 35 MB), and of the largest
#: of other files. As Python's objects JSON can take thirty times its size.
_LARGEST_TOKENIZER = 64 << 20
_LARGEST = 16 << 20

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

#: Single files of weights and the indexes of several, the first that is there counts; the order is
#: that of transformers.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with ``config.json`` and what goes with it.

    Raises:
        DataError: there is no such folder.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise DataError("no such folder", where=str(self.path), todo="check the path")

    def has(self, name: str) -> bool:
        """Whether there is a file, be it good or bad."""
        return (self.path / name).is_symlink() or (self.path / name).exists()

    def file(self, name: str, named_by: str = "") -> Path:
        """The path of a file of this folder.

        Args:
            named_by: the file that names it, for errors.

        Raises:
            DataError: it is missing, elsewhere, or no plain file.
        """
        where = str(self.path / named_by) if named_by else str(self.path)
        if not _PLAIN.fullmatch(name):
            raise DataError(f"{name!r} is no name of a file in the folder itself", where=where)
        path = self.path / name
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            raise DataError(
                f"{name} is missing" + (f", which {named_by} names" if named_by else ""),
                where=where,
                todo="fetch the whole model again",
            ) from None
        except OSError as error:
            raise from_os_error(error, "reading a model") from error
        if S_ISLNK(mode) and self._in_cache(path):
            mode = path.stat().st_mode
        if not S_ISREG(mode):
            what = "a link" if S_ISLNK(mode) else "no plain file"
            raise DataError(
                f"{name} is {what}", where=where, todo="put the file itself into the folder"
            )
        return path

    def _in_cache(self, path: Path) -> bool:
        """Whether a link is of the hub's cache: ``snapshots/COMMIT/NAME`` to ``blobs/HASH``."""
        repo = path.parent.parent.parent
        target = path.resolve()
        return (
            path.parent.parent.name == "snapshots"
            and not (repo / "blobs").is_symlink()
            and target.parent == (repo / "blobs").resolve()
            and target.is_file()
        )

    def bytes(self, name: str) -> bytes:
        """The contents of a small file. Raises: DataError, see `file`; or it is too large."""
        path = self.file(name)
        try:
            largest = _LARGEST_TOKENIZER if name.startswith("tokenizer.") else _LARGEST
            if path.stat().st_size > largest:
                raise DataError(f"{name} is too large to be one", where=str(path))
            return path.read_bytes()
        except OSError as error:
            raise from_os_error(error, "reading a model") from error

    def json(self, name: str) -> dict[str, Any]:
        """The object of a JSON file.

        Raises:
            DataError: see `file`; or it holds none.
        """
        try:
            value = json.loads(self.bytes(name).decode())
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"cannot be read as JSON: {error}", where=str(self.path / name)
            ) from None
        if not isinstance(value, dict):
            raise DataError("holds no JSON object", where=str(self.path / name))
        return value

    def optional_json(self, name: str) -> dict[str, Any]:
        """`json`, or nothing where there is no such file."""
        return self.json(name) if self.has(name) else {}

    def check_is_model(self) -> None:
        """Raises: DataError: there is no configuration; it says what the folder is instead."""
        if self.has(CONFIG):
            return
        if self.has(ADAPTER):
            base = self.json(ADAPTER).get("base_model_name_or_path")
            raise DataError(
                f"an adapter without its base ({base})",
                where=str(self.path),
                todo="merge it into its base with the tool that made it, and import the result",
            )
        gguf = next((one.name for one in self.path.iterdir() if one.suffix == ".gguf"), None)
        raise DataError(
            f"no {CONFIG} in the folder" + (f"; {gguf} is of llama.cpp" if gguf else ""),
            where=str(self.path),
            todo="name a folder in the layout of Hugging Face",
        )

    def weights(self) -> tuple[list[Path], Mapping[str, str] | None]:
        """The files of weights, and by tensor the file that an index says; None without one.

        Raises:
            DataError: there are none, one is missing, or an index names what is no file of here.
        """
        for name in _WEIGHTS:
            if self.has(name):
                return [self.file(name)], None
            if self.has(f"{name}.index.json"):
                return self._indexed(f"{name}.index.json")
        if self.has(ADAPTER):
            raise DataError(
                "an adapter without the weights of its base",
                where=str(self.path),
                todo="merge it into its base with the tool that made it, and import the result",
            )
        raise DataError(
            f"no weights: neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}, nor the index of several",
            where=str(self.path),
            todo="fetch the whole model again",
        )

    def _indexed(self, index: str) -> tuple[list[Path], Mapping[str, str]]:
        found = self.json(index).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise DataError("no weight_map in the index", where=str(self.path / index))
        if not all(isinstance(name, str) for name in found.values()):
            raise DataError(
                "the weight_map holds what is no file name", where=str(self.path / index)
            )
        return [self.file(name, index) for name in sorted(set(found.values()))], found
