"""A model and its tokenizer, from a registered checkpoint."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from bc2.errors import DataError
from bc2.model.heads import ValueHead
from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import SavedAdapter, add_adapters, base_of, holds_adapters
from bc2.model.store import (
    CONFIG,
    WEIGHTS,
    OpenedWeights,
    load_config,
    load_model,
    weight_files,
)
from bc2.model.transformer import Transformer
from bc2.parallel.own_device import make_current
from bc2.registry import Artifact
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import MODEL_FILE, tokenizer_name, tokenizer_path


@dataclass(frozen=True)
class LanguageModel:
    """What generation needs, on one device; or what scores answers, whose head says numbers."""

    model: Transformer
    tokenizer: Tokenizer
    artifact: Artifact


def check_files(artifact: Artifact) -> None:
    """See that a checkpoint has what a model needs.

    Raises:
        DataError: it has no model or no tokenizer.
    """
    names = artifact.files()
    there = {*names, *([WEIGHTS] if weight_files(names) else [])}
    # Without a tokenizer of either kind, bc2's own is what is missing.
    missing = {CONFIG, WEIGHTS, tokenizer_name(names) or MODEL_FILE} - there
    if missing:
        raise DataError(
            f"{artifact.title} holds no {min(missing)}",
            where=str(artifact.path),
            todo="name a checkpoint: bc2 registry list --kind checkpoint",
        )


@contextmanager
def open_model(
    artifact: Artifact,
    device: torch.device,
    dtype: torch.dtype,
    *,
    beside: Transformer | None = None,
) -> Iterator[LanguageModel]:
    """Load a checkpoint, and keep the registry from deleting it while it is in use.

    Of an adapter the base is loaded too, and the adapter stays beside its weights.

    Each file is checked against its digest. The weights are read once: the digest takes their
    bytes as they pass on to `device`.

    Args:
        device: a GPU with its index becomes the current one.
        dtype: of the model's weights.
        beside: the same model, or an adapter's base, loaded in that dtype on that device: its
            weights are used, and not loaded again.

    Raises:
        DataError: the artifact has no model or no tokenizer.
        RefError: the base of an adapter is not registered.
        IntegrityError: a file is not what was published.
    """
    with ExitStack() as held:
        held.enter_context(artifact.hold())
        check_files(artifact)
        base = artifact
        if holds_adapters(artifact):
            base = held.enter_context(base_of(artifact).hold())
        make_current(device)
        artifact.file(CONFIG)
        config = load_config(artifact.path)
        model = (
            _model_of(base, config, device, dtype) if beside is None else sharing_weights(beside)
        )
        if base is not artifact:
            _prepare_head(model, config)
            lora = SavedAdapter.of(artifact).lora
            add_adapters(model, artifact.path, lora, device, dtype, opened=_reading(artifact))
        tokenizer = Tokenizer.load(tokenizer_path(artifact))
        yield LanguageModel(model.eval(), tokenizer, artifact)


def _model_of(
    base: Artifact, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> Transformer:
    """The weights of a checkpoint as a model of `config`, but with the head that it has."""
    base.file(CONFIG)
    own = load_config(base.path)
    shape = config.model_copy(update={"head": own.head, "num_classes": own.num_classes})
    return load_model(base.path, device, dtype, config=shape, opened=_reading(base))


def _prepare_head(model: Transformer, config: ModelConfig) -> None:
    """Put a head of values, which an adapter brings along, in place of the one that is there.

    It is on the meta device until the adapter's weights fill it.
    """
    if config.head == "language":
        return
    if model.config.head == "language":
        del model.lm_head
    model.config = config
    with torch.device("meta"):
        model.score = ValueHead(config)


def sharing_weights(model: Transformer) -> Transformer:
    """Another model with the same tensors as weights, to which adapters may be added."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _reading(artifact: Artifact) -> OpenedWeights:
    names = weight_files(artifact.files())
    return {artifact.path / name: artifact.reading(name) for name in names}
