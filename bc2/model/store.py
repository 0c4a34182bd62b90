"""A model on disk: weights in safetensors, the configuration in JSON beside them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import RawIOBase
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bc2.errors import DataError, IntegrityError, from_os_error, nearest
from bc2.files import sync_directory, sync_file, write_durably
from bc2.model.heads import HEADS
from bc2.model.model_config import ModelConfig
from bc2.model.safetensors_file import DTYPES, SafetensorsReader, TensorSpan
from bc2.model.transformer import Transformer

WEIGHTS = "model.safetensors"
CONFIG = "model.json"

#: One file, or several as Hugging Face names them.
_WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")

#: Files of weights by path; entering the context opens one, to be read from front to back.
OpenedWeights = Mapping[Path, AbstractContextManager[RawIOBase]]


def save_model(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` and `model.json` into an existing directory, and sync them.

    Args:
        state: a `Transformer`'s state dict, on any device.

    Raises:
        IntegrityError: names or shapes differ from those that `config` gives.
        Bc2Error: the disk is full or may not be written.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(shapes, config, "state to save")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_tensors(tensors, folder / WEIGHTS)
        sync_file(folder / WEIGHTS)
        save_config(folder, config)
        sync_directory(folder)
    except OSError as error:
        raise from_os_error(error, "saving the model") from error


def save_config(folder: Path, config: ModelConfig, prefix: str = "") -> None:
    """Write `model.json` and sync it.

    It holds what a key holds: a setting that is added later changes no model of before.
    """
    text = json.dumps(config.keyed(), indent=2)
    write_durably(folder / f"{prefix}{CONFIG}", f"{text}\n".encode())


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the system refused the write. safetensors raises an error of its own with the
            text only; this raises the OSError again.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_config(folder: Path) -> ModelConfig:
    """Read `model.json`.

    Raises:
        DataError: it is not there.
        IntegrityError: it is not a model's configuration.
    """
    path = folder / CONFIG
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise from_os_error(error, "reading the model's configuration") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise IntegrityError(f"{place}: {first['msg']}", where=str(path)) from error


def load_model(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    config: ModelConfig | None = None,
    opened: OpenedWeights | None = None,
) -> Transformer:
    """Build a model and fill it from `folder`.

    Args:
        folder: a directory that `save_model` wrote.
        device: where the weights go.
        dtype: their dtype; as stored if None.
        config: of the model; None: the one in `folder`. Where its head is of another kind than
            that in `folder`, the head stays on the meta device: `add_adapters` fills it.
        opened: see `load_weights`.

    Raises:
        DataError: a file is missing.
        IntegrityError: the file is broken, or tensors are missing, unknown, of the wrong
            shape, or of different dtypes.
    """
    stored = load_config(folder)
    config = stored if config is None else config
    if stored.head == config.head:
        stored = config
    tensors = load_weights(folder, expected_shapes(stored), device, dtype, opened=opened)
    with torch.device("meta"):
        model = Transformer(config)
    if stored is not config:
        tensors = {name: one for name, one in tensors.items() if name not in HEADS}
    model.load_state_dict(tensors, strict=stored is config, assign=True)
    return model.requires_grad_(True)


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of a directory's file names that hold a model's weights, sorted."""
    return sorted(name for name in names if _WEIGHT_FILE.fullmatch(name))


def load_weights(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    opened: OpenedWeights | None = None,
) -> dict[str, Tensor]:
    """Read the safetensors files of `folder`, which must hold exactly the tensors expected.

    Each file is read once, and besides the tensors no more than 16 MiB of one is held. What
    headers can tell is checked before any tensor is read.

    Args:
        expected: names and shapes, such as `expected_shapes` gives.
        opened: the files, each opened as its context is entered, and good when all contexts
            have ended; all that are in `folder` if None.

    Raises:
        DataError: there is no such file.
        IntegrityError: a file is broken, or tensors are missing, unknown, of the wrong shape,
            or (unless `dtype` is given) of different dtypes.
    """
    if opened is None:
        paths = [folder / name for name in weight_files(os.listdir(folder))]
        opened = {path: _opened(path) for path in paths}
    if not opened:
        raise DataError("no such file while loading the model", where=str(folder / WEIGHTS))
    tensors: dict[str, Tensor] = {}
    try:
        with ExitStack() as held:
            files = [
                SafetensorsReader(held.enter_context(file), path) for path, file in opened.items()
            ]
            _check_headers(files, expected, folder, dtype)
            for file in files:
                tensors.update(file.tensors(device, dtype))
    except OSError as error:
        raise from_os_error(error, "loading the model") from error
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[RawIOBase]:
    with path.open("rb", buffering=0) as file:
        yield file


def _check_headers(
    files: Sequence[SafetensorsReader],
    expected: Mapping[str, tuple[int, ...]],
    folder: Path,
    dtype: torch.dtype | None,
) -> None:
    spans: dict[str, TensorSpan] = {}
    for file in files:
        twice = spans.keys() & file.spans.keys()
        if twice:
            raise IntegrityError(f"{min(twice)} is in another file too", where=str(file.path))
        spans.update(file.spans)
    check_names({n: span.shape for n, span in spans.items()}, expected, str(files[0].path))
    stored = {DTYPES[span.dtype] for span in spans.values()}
    if dtype is None and len(stored) > 1:
        kinds = ", ".join(sorted(map(str, stored)))
        raise IntegrityError(
            f"the weights have several dtypes: {kinds}",
            where=str(folder / WEIGHTS),
            todo="load with one dtype",
        )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter of a model."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(found: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str) -> None:
    """Check names and shapes of tensors against those of a model.

    Args:
        where: named in the error.

    Raises:
        IntegrityError: a tensor is missing, unknown or of the wrong shape.
    """
    check_names(found, expected_shapes(config), where)


def check_names(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Check names and shapes of tensors against those that are expected, such as adapters alone.

    Raises:
        IntegrityError: see `check_shapes`.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    for name, shape in found.items():
        if name not in expected:
            guess = nearest(name, expected)
            problems.append(f"{name} is unknown" + (f" (like {guess}?)" if guess else ""))
        elif shape != expected[name]:
            problems.append(f"{name} is {list(shape)}, not {list(expected[name])}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise IntegrityError(
            "the weights do not fit the configuration: " + "; ".join(problems[:3]) + more,
            where=where,
        )
