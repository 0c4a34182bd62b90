"""Several models made one, as a recipe's [merge] says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch

from bc2.console import progress
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.merging.chosen_models import ChosenModels
from bc2.convert.merging.merge_config import MergeConfig
from bc2.convert.merging.merged_rows import MergedRows, facts_of
from bc2.convert.tensor_files import write_tensors
from bc2.errors import RecipeError, from_os_error
from bc2.files import write_durably
from bc2.model.peft_layout import family_of_model
from bc2.model.safetensors_file import DTYPES
from bc2.model.store import save_config
from bc2.override import spelled_place
from bc2.recipe import TOP_KEYS, Recipe, load
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.registry.draft import check_name
from bc2.registry.manifest import FileEntry
from bc2.toml_file import dotted
from bc2.train.allocator import keep_freed_memory

#: Raised when the same models and settings would give another one.
_VERSION = 1

#: What safetensors calls the types of `MergeConfig.dtype`.
_STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


def read_merge(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with [merge], and overrides that reach it.

    Raises:
        RecipeError: it has none, or an override is of another section.
    """
    recipe = load(source, overrides)
    for path, spelled in recipe.overrides.items():
        if path[0] not in (MergeConfig.section, *TOP_KEYS):
            raise RecipeError(
                f"{dotted(path)} reaches nothing of a merge",
                where=spelled_place(spelled),
                todo="leave it out, or set merge.KEY",
            )
    recipe.get(MergeConfig)
    return recipe


def merge_models(
    registry: Registry, recipe: Recipe, name: str | None = None
) -> tuple[Artifact, bool]:
    """Register the model that a recipe's [merge] makes; computed in fp32, some rows at a time.

    Args:
        name: of what is made; the recipe's if None.

    Returns:
        The merged checkpoint, and whether it was made: what is there is found.

    Raises:
        RecipeError: the recipe is wrong, or its models cannot be merged.
        RefError: one is not registered.
        DataError: one has NaN in it, or the method does not work for a tensor.
        IntegrityError: a file is not what was published.
        ResourceError: the disk is full. Nothing is left behind.
    """
    name = check_name(recipe.name if name is None else name)
    chosen = ChosenModels.of(recipe, registry)
    draft = _draft(chosen, recipe, name)
    known = registry.find("checkpoint", draft.key)
    if known is not None:
        return known, False
    chosen.tell()
    registry.sweep()  # a merge that was killed may have left as much as the model has
    try:
        with ExitStack() as held:
            sources = [held.enter_context(SourceModel.open(one)) for one in chosen.all]
            staged = held.enter_context(registry.stage(draft))
            _write_texts(staged.path, chosen)
            known_files, report = _write_weights(staged.path, chosen.config, sources)
            for source in sources:
                source.check_intact()
            return staged.publish({"tensors": report} if report else {}, known=known_files), True
    except OSError as error:
        raise from_os_error(error, f"merging {name}") from error


def _draft(chosen: ChosenModels, recipe: Recipe, name: str) -> Draft:
    config, parents = chosen.config, tuple(one.digest for one in chosen.all)
    speech = {file: owner.entry(file).sha256 for file, owner in chosen.texts()}
    settings = {"merge": config.keyed(), "name": name, "speech": speech}
    family = family_of_model(chosen.models[0])
    facts = {
        "params": chosen.shape.num_params(),
        "method": config.method,
        "merged_from": _shares(chosen),
        **({} if family is None else {"family": family}),
    }
    return Draft(
        "checkpoint",
        name,
        stage_key("checkpoint", _VERSION, settings, parents),
        parents,
        recipe=recipe.resolved({MergeConfig.section}),
        facts=facts,
        role="merged" if chosen.shape.head == "language" else "reward",
    )


def _shares(chosen: ChosenModels) -> list[dict[str, Any]]:
    """What part each parent has in the model, in the order of parents."""
    config = chosen.config
    parts: list[str] = [f"weight {weight:.6g}" for weight in config.weights]
    if config.method == "slerp":
        parts = [f"t = 0, of {config.t:g}", f"t = 1, of {config.t:g}"]
    elif config.method == "model-stock":
        parts = ["one of the mean"] * len(chosen.models)
    elif config.method == "ties":
        shares = zip(parts, config.densities, strict=True)
        parts = [f"{weight}, density {density:.6g}" for weight, density in shares]
    parts += ["the base"] if chosen.base is not None else []
    return [
        {"digest": one.digest, "title": one.title, "as": part}
        for one, part in zip(chosen.all, parts, strict=True)
    ]


def _write_texts(folder: Path, chosen: ChosenModels) -> None:
    save_config(folder, chosen.shape)
    for name, owner in chosen.texts():
        write_durably(folder / name, owner.file(name).read_bytes())


def _write_weights(
    folder: Path, config: MergeConfig, sources: Sequence[SourceModel]
) -> tuple[list[FileEntry], dict[str, dict[str, float]]]:
    """Write the merged weights: their files, and what each tensor's merge went by."""
    keep_freed_memory()
    merged = MergedRows(config, sources)
    if merged.to_measure:
        with progress("measuring task vectors", merged.to_measure, "numbers") as measured:
            merged.measure(measured)
    stored = _STORED[config.dtype]
    dtype = DTYPES[stored]

    def pieces(name: str) -> Iterator[memoryview]:
        for rows in merged.of(name, dtype):
            yield rows.reshape(-1).view(torch.uint8).numpy().data

    total = dtype.itemsize * sum(map(prod, merged.shapes.values()))
    tensors = {name: (stored, shape) for name, shape in merged.shapes.items()}
    with progress("merging", total, "bytes") as wrote:
        digests = write_tensors(folder, tensors, pieces, wrote)
    files = [
        FileEntry(path=file, size=(folder / file).stat().st_size, sha256=digest)
        for file, digest in digests.items()
    ]
    return files, facts_of(merged.report)
