"""Files of weights, and indexes of them, that are damaged or made to harm: one message each."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_models import Break, Case, Check, raw, text
from made_hf_models import original

# -- the index ----------------------------------------------------------------------------


INDEX = "model.safetensors.index.json"


def index_names(name: str) -> Break:
    """Have the index name another file for one tensor, which is there outside."""

    def rename(folder: Path) -> None:
        outside = folder.parent / "outside.safetensors"
        outside.write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
        (folder / "model-00001-of-00003.safetensors").unlink()
        path = folder / INDEX
        text = path.read_text()
        found = name.format(outside=outside)
        path.write_text(text.replace("model-00001-of-00003.safetensors", found))

    return rename


def _link(folder: Path) -> None:
    shard = folder / "model-00001-of-00003.safetensors"
    outside = shard.replace(folder.parent / "outside.safetensors")
    shard.symlink_to(outside)


def _linked_folder(folder: Path) -> None:
    index_names("within/outside.safetensors")(folder)
    (folder / "within").symlink_to(folder.parent)


def _tensor_elsewhere(folder: Path) -> None:
    """The index says another file than the one that a tensor is in."""
    path = folder / INDEX
    data = json.loads(path.read_text())
    data["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(data))


INDEXES = {
    "absolute": (index_names("{outside}"), "outside.safetensors"),
    "above": (index_names("../outside.safetensors"), "../outside.safetensors"),
    "above by a detour": (index_names("a/../../outside.safetensors"), "outside.safetensors"),
    "link": (_link, "model-00001-of-00003.safetensors"),
    "linked folder": (_linked_folder, "outside.safetensors"),
    "device": (index_names("/dev/zero"), "/dev/zero"),
    "no JSON": (text(INDEX, "{"), INDEX),
    "no map": (text(INDEX, "{}"), INDEX),
    "a map of numbers": (text(INDEX, '{"weight_map": {"a": 1}}'), INDEX),
    "a map of lists": (text(INDEX, '{"weight_map": []}'), INDEX),
    "elsewhere": (_tensor_elsewhere, "model.norm.weight"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(check: Check, name: str) -> None:
    break_it, says = INDEXES[name]
    check(Case(break_it, (says,), shards=3))


# -- headers of safetensors ---------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], None]) -> Break:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        entries = json.loads(raw[8 : 8 + length])
        change(entries)
        made = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(made)) + made + raw[8 + length :])

    return rewrite


def entry(**settings: Any) -> Break:
    return header(lambda entries: entries["model.norm.weight"].update(settings))


def _overlap(entries: dict[str, Any]) -> None:
    one, other = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
    entries[one]["data_offsets"] = entries[other]["data_offsets"]


def _again(all_: bytes) -> bytes:
    """With the header's first entry in it a second time, of another type of the same size."""
    (length,) = struct.unpack("<Q", all_[:8])
    entries = json.loads(all_[8 : 8 + length])
    twice = json.dumps({"model.norm.weight": entries["model.norm.weight"] | {"dtype": "I32"}})
    whole = twice[:-1].encode() + b"," + json.dumps(entries).encode()[1:]
    return struct.pack("<Q", len(whole)) + whole + all_[8 + length :]


#: More bytes than any machine has.
HUGE = 2**50

HEADERS: dict[str, Break] = {
    "beyond the file": entry(data_offsets=[HUGE, HUGE + 256]),
    "before the file": entry(data_offsets=[-256, 0]),
    "backwards": entry(data_offsets=[256, 0]),
    "overlapping": header(_overlap),
    "huge shape": entry(shape=[HUGE]),
    "huge shape and place": entry(shape=[HUGE], data_offsets=[0, 4 * HUGE]),
    "product that overflows": entry(shape=[2**32, 2**32]),
    "negative shape": entry(shape=[-64]),
    "shape of words": entry(shape=["64"]),
    "shape of another size": entry(shape=[65]),
    "no shape": header(lambda entries: entries["model.norm.weight"].pop("shape") and None),
    "unknown dtype": entry(dtype="F3"),
    "huge header": raw(lambda all_: struct.pack("<Q", HUGE) + all_[8:]),
    "header of the whole file": raw(lambda all_: struct.pack("<Q", len(all_) - 8) + all_[8:]),
    "no header": raw(lambda all_: struct.pack("<Q", 0) + all_[8:]),
    "a header without end": raw(lambda all_: struct.pack("<Q", 100_000) + b"[" * 100_000),
    "empty": raw(lambda _: b""),
    "short": raw(lambda all_: all_[:-1]),
    "long": raw(lambda all_: all_ + b"0"),
    "a pickle": raw(lambda _: pickle.dumps({})),
    "a tensor twice": raw(_again),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(check: Check, name: str) -> None:
    check(Case(HEADERS[name], ("model.safetensors",)))


# -- files of torch -----------------------------------------------------------------------


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Evaluated(Hostile):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').system({self.command!r})",)


BIN = "pytorch_model.bin"


def hostile(kind: type[Hostile], write: Callable[[Any, Path], None]) -> Break:
    def rewrite(folder: Path) -> None:
        command = f"touch {folder.parent / 'ran'}"
        write({**torch.load(folder / BIN), "model.evil": kind(command)}, folder / BIN)

    return rewrite


def _old_format(data: Any, path: Path) -> None:
    torch.save(data, path, _use_new_zipfile_serialization=False)


def _plain_pickle(data: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(data["model.evil"]))


def _members(change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Break:
    """Write the archive anew, each member changed or left out."""

    def rewrite(folder: Path) -> None:
        made = io.BytesIO()
        with zipfile.ZipFile(folder / BIN) as old, zipfile.ZipFile(made, "w", compression) as new:
            for name in old.namelist():
                content = change(name, old.read(name))
                if content is not None:
                    new.writestr(name, content)
        (folder / BIN).write_bytes(made.getvalue())

    return rewrite


def _replaced(member: str, content: bytes | None) -> Break:
    return _members(lambda name, old: content if name.endswith(member) else old)


def _without_storage(name: str, content: bytes) -> bytes | None:
    return None if name.endswith("data/3") else content


def _short_storage(name: str, content: bytes) -> bytes:
    return content[:-4] if name.endswith("data/3") else content


def saved(change: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda folder: torch.save(change(torch.load(folder / BIN)), folder / BIN)


def _sparse(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"model.norm.weight": data["model.norm.weight"].to_sparse()}


class Before:
    """A tensor that begins before its storage."""

    def __reduce__(self) -> Any:
        storage = torch.ones(64).untyped_storage()
        typed = torch.storage.TypedStorage(
            wrap_storage=storage, dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (typed, -5, (64,), (1,), False, OrderedDict())


FILES: dict[str, Break] = {
    "before its storage": saved(lambda data: data | {"model.norm.weight": Before()}),
    "os.system": hostile(Hostile, torch.save),
    "eval": hostile(Evaluated, torch.save),
    "os.system, as torch once wrote": hostile(Hostile, _old_format),
    "os.system alone": hostile(Hostile, _plain_pickle),
    "compressed": _members(lambda _, content: content, zipfile.ZIP_DEFLATED),
    "truncated": raw(lambda all_: all_[: len(all_) // 2], BIN),
    "cut at the end": raw(lambda all_: all_[:-30], BIN),
    "empty": raw(lambda _: b"", BIN),
    "no archive": raw(lambda _: b"0" * 1000, BIN),
    "no pickle": _replaced("data.pkl", None),
    "a broken pickle": _replaced("data.pkl", b"\x80\x02"),
    "a missing storage": _members(_without_storage),
    "a short storage": _members(_short_storage),
    "a list": saved(lambda data: list(data.values())),
    "a number": saved(lambda data: data | {"model.norm.weight": 1.0}),
    "numbers for names": saved(lambda data: dict(enumerate(data.values()))),
    "sparse": saved(_sparse),
    "transposed": saved(
        lambda data: (
            data | {"model.layers.1.mlp.up_proj.weight": torch.ones(64, 96).T}
        )  # its numbers lie in another order
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_torch(check: Check, tmp_path: Path, name: str) -> None:
    check(Case(FILES[name], (BIN,), kind="bin"))
    assert not (tmp_path / "ran").exists(), "a pickle ran a command"


def test_the_hostile_files_are(tmp_path: Path) -> None:
    """The commands run where nothing keeps them from it."""
    original("llama3").write(tmp_path / "model", "bin")
    FILES["os.system"](tmp_path / "model")
    torch.load(tmp_path / "model" / BIN, weights_only=False)
    assert (tmp_path / "ran").exists()
