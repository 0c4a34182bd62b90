"""An adapter and its base made one model, which needs neither of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import torch

from bc2.console import progress
from bc2.convert.tensor_files import write_tensors
from bc2.errors import DataError, from_os_error
from bc2.files import write_durably
from bc2.generate.generation_defaults import GENERATION_FILE
from bc2.model.peft_layout import family_of_model
from bc2.model.saved_adapter import SavedAdapter, base_of
from bc2.model.store import CONFIG, expected_shapes, load_config, save_config
from bc2.parallel.build import StartWeights
from bc2.parallel.sharding import TensorShard
from bc2.registry import Artifact, Draft, Registry, Role, stage_key
from bc2.registry.draft import check_name
from bc2.registry.manifest import FileEntry
from bc2.tokenizer.tokenizer_files import CHAT_FILE, TOKENIZER_FILES, tokenizer_path
from bc2.train.start_weights import open_start_weights

#: Raised when the same two would give another artifact.
_VERSION = 1


def merge_adapter(
    registry: Registry, adapter: Artifact, name: str | None = None
) -> tuple[Artifact, bool]:
    """Register the base of an adapter with W + s B A in place of each weight W; computed in fp32.

    Of a reward model's adapter the head that lies in it is the merged model's, of the role
    "reward".

    Tokenizer, chat layout and settings of generation go along. All weights are stored in fp32: in
    bf16 most of what a small adapter adds would be rounded away.

    Args:
        name: of what is made; ``NAME-merged`` if None.

    Returns:
        The merged checkpoint, and whether it was made: what is there is found.

    Raises:
        RefError: the base is not registered.
        DataError: it has adapters of a kind that bc2 does not load, or weights that are NaN or
            infinite.
        IntegrityError: a file is not what was published.
        UsageError: the name cannot be.
        ResourceError: the disk is full. Nothing is left behind.
    """
    name = check_name(f"{adapter.name}-merged" if name is None else name)
    base, lora = base_of(adapter, registry), SavedAdapter.of(adapter).lora
    parents = (base.digest, adapter.digest)
    key = stage_key("checkpoint", _VERSION, {"merged": "fp32", "name": name}, parents)
    known = registry.find("checkpoint", key)
    if known is not None:
        return known, False
    registry.sweep()  # a merge that was killed may have left as much as the model has
    config = load_config(adapter.file(CONFIG).parent)
    facts = {
        "params": config.num_params(), "merged": lora.model_dump(mode="json"), **_family(base),
        **_scale(adapter),
    }  # fmt: skip
    role: Role = "merged" if config.head == "language" else "reward"
    draft = Draft("checkpoint", name, key, parents, facts=facts, role=role)
    try:
        with base.hold(), adapter.hold(), registry.stage(draft) as staged:
            save_config(staged.path, config)
            _copy_texts(staged.path, adapter, base)
            weights = open_start_weights(adapter, config, seed=0)
            files = _write(staged.path, weights, expected_shapes(config), adapter.title)
            return staged.publish(known=files), True
    except OSError as error:
        raise from_os_error(error, f"merging {adapter.title}") from error


def _family(base: Artifact) -> dict[str, str]:
    """Which classes of transformers an imported model is for."""
    family = family_of_model(base)
    return {} if family is None else {"family": family}


def _scale(adapter: Artifact) -> dict[str, float]:
    """Centre and scale of a reward model's scores, which merging does not change."""
    facts = adapter.manifest.facts
    return {name: facts[name] for name in ("score_centre", "score_scale") if name in facts}


def _copy_texts(folder: Path, adapter: Artifact, base: Artifact) -> None:
    """The adapter's tokenizer and layout; its settings of generation, or those of the base."""
    tokenizer_path(adapter)
    for name in (*TOKENIZER_FILES, CHAT_FILE, GENERATION_FILE):
        for source in (adapter, base) if name == GENERATION_FILE else (adapter,):
            if name in source.files():
                write_durably(folder / name, source.file(name).read_bytes())
                break


def _write(
    folder: Path, weights: StartWeights, shapes: Mapping[str, tuple[int, ...]], title: str
) -> list[FileEntry]:
    """Write weights in fp32, one matrix in memory at a time.

    Raises:
        DataError: one is not finite.
    """

    def whole(name: str) -> Iterator[memoryview]:
        shape = shapes[name]
        read = weights.read(name, TensorShard(shape), 0, prod(shape)).float()
        # A sum is quick, and nothing but an overflow is infinite in it alone.
        if not torch.isfinite(read.sum()) and not torch.isfinite(read).all():
            raise DataError(
                f"{name} of {title}, or of its base, holds NaN or infinity",
                where=name,
                todo="take a checkpoint from before the training diverged",
            )
        yield read.numpy().data.cast("B")

    total = 4 * sum(map(prod, shapes.values()))
    with progress("merging", total, "bytes") as seen:
        digests = write_tensors(folder, {n: ("F32", s) for n, s in shapes.items()}, whole, seen)
    return [
        FileEntry(path=file, size=(folder / file).stat().st_size, sha256=digest)
        for file, digest in digests.items()
    ]
