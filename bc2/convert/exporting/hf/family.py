"""Which family a model is written as: what it computes that Llama does not, and who has that."""

from __future__ import annotations

from dataclasses import dataclass

from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig


@dataclass(frozen=True)
class Option:
    """What a model has and Llama has not."""

    what: str
    families: tuple[str, ...]
    """Those that have it, the plainest first."""
    always: tuple[str, ...] = ()
    """Those whose models all have it."""


def _options(config: ModelConfig) -> list[Option]:
    found = []
    if config.qkv_bias:
        found.append(Option("biases of queries, keys and values", ("qwen2",)))
    if config.qk_norm:
        found.append(Option("norms of queries and keys", ("qwen3",)))
    if config.sliding_window is not None:
        what = f"a window of {config.sliding_window:,} tokens"
        found.append(Option(what, ("mistral", "qwen2", "qwen3")))
    if config.hidden_size % config.num_heads:
        what = f"heads of {config.head_size} channels, whose number does not divide the width"
        found.append(Option(what, ("mistral", "qwen2", "qwen3")))
    return found


#: What a family cannot be without.
_NEEDS = {"qwen2": "qkv_bias", "qwen3": "qk_norm"}


def family_for(asked: str, config: ModelConfig) -> tuple[str, str | None]:
    """The family that a model is written as.

    Args:
        asked: ``llama`` is whichever fits; another one is itself.

    Returns:
        Its name, and why it is not the one that was asked for.

    Raises:
        UsageError: no family computes it, or not the one that was asked for.
    """
    _check_kind(asked, config)
    options = _options(config)
    fitting = [
        name for name in ("llama", "mistral", "qwen2", "qwen3") if _fits(name, options, config)
    ]
    if asked in fitting:
        return asked, None
    what = " and ".join(option.what for option in options)
    if not fitting:
        raise UsageError(
            f"no family of transformers has {what}",
            where=f"--to {asked}",
            todo="write it with --to gguf or --to safetensors",
        )
    if asked != "llama":
        lacks = what or "neither biases nor norms of queries and keys"
        raise UsageError(
            f"the model has {lacks}, which is not {asked}",
            where=f"--to {asked}",
            todo=f"write it with --to {fitting[0]}",
        )
    return fitting[0], f"the model has {what}, which Llama lacks: written as {fitting[0]}"


def _fits(name: str, options: list[Option], config: ModelConfig) -> bool:
    needs = _NEEDS.get(name)
    has_needed = needs is None or bool(getattr(config, needs))
    return has_needed and all(name in option.families for option in options)


def _check_kind(asked: str, config: ModelConfig) -> None:
    """Raises: UsageError: the model neither speaks nor scores, or does not rotate."""
    if config.head == "classes":
        raise UsageError(
            f"a model with a {config.head} head neither says next tokens nor scores",
            where=f"--to {asked}",
            todo="write its weights with --to safetensors",
        )
    if config.position != "rope":
        raise UsageError(
            "ALiBi is in none of transformers' own Llama, Mistral and Qwen",
            where=f"--to {asked}",
            todo="write it with --to baichuan for transformers, or with --to gguf for llama.cpp",
        )
