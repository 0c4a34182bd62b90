"""The token shards, mixture and schedule of a run, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bc2.data.mixture import Mixture, stratum_weights
from bc2.data.shards import INDEX, TokenShards
from bc2.errors import RecipeError
from bc2.registry import Artifact
from bc2.tokenizer.tokenizer_files import tokenizer_path
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.schedule import Schedule


@dataclass(frozen=True)
class TokenInputs:
    """The data, mixture and schedule of a run."""

    shards: TokenShards
    mixture: Mixture
    schedule: Schedule
    tokenizer: Path


def open_token_inputs(config: PretrainConfig, tokens: Artifact, tokenizer: Artifact) -> TokenInputs:
    """Open the data of a run and work out its schedule. Of the shards only the sizes are checked.

    Raises:
        RecipeError: settings that do not fit the data.
        IntegrityError: a file is not what was published.
    """
    tokens.file(INDEX)
    shards = TokenShards.open(tokens.path)
    mixture = _mixture(shards, config)
    windows = sum(mixture.windows.values())
    schedule = Schedule.of(config, epoch_tokens=windows * config.sequence_length)
    _check_epochs(config, mixture, schedule.total)
    return TokenInputs(shards, mixture, schedule, tokenizer_path(tokenizer))


def _mixture(shards: TokenShards, config: PretrainConfig) -> Mixture:
    windows = {
        source: (shards.num_tokens("train", source) - 1) // config.sequence_length
        for source in shards.sources("train")
    }
    weights = stratum_weights(windows, config.weights, shards.weights, shards.source_of)
    return Mixture(windows, weights, config.seed)


def _check_epochs(config: PretrainConfig, mixture: Mixture, steps: int) -> None:
    most = math.inf if config.max_epochs is None else config.max_epochs
    epochs = mixture.epochs(steps * config.batch_sequences)
    above = sorted((s for s in epochs if epochs[s] > most), key=lambda s: -epochs[s])
    if above:
        rest = f", and {len(above) - 1} more" if above[1:] else ""
        raise RecipeError(
            f"{above[0]} would be read {epochs[above[0]]:.2f} times{rest}; "
            f"pretrain.max_epochs is {most:g}",
            where="pretrain.max_epochs",
            todo="lower its weight, shorten the run, give more text, or raise max_epochs",
        )


#: Strata that `mixture_lines` shows of each source, those read most often.
_SHOWN = 3


def mixture_lines(config: PretrainConfig, inputs: TokenInputs) -> list[str]:
    """Lines for a person: of each source its share of the samples and its epochs."""
    carried = "weights of the corpus" if inputs.shards.weights else "in proportion to tokens"
    lines = [f"mixture: {'weights of the recipe' if config.weights else carried}"]
    epochs = inputs.mixture.epochs(inputs.schedule.total * config.batch_sequences)
    sources: dict[str, list[str]] = {}
    for name in inputs.mixture.sources:
        sources.setdefault(inputs.shards.source_of(name), []).append(name)
    for source, strata in sources.items():
        lines.append(f"  {source}: {_source_line(strata, inputs.mixture, epochs)}")
    return lines


def _source_line(strata: list[str], mixture: Mixture, epochs: Mapping[str, float]) -> str:
    windows = sum(mixture.windows[name] for name in strata)
    share = sum(mixture.share(name) for name in strata)
    read = sum(epochs[name] * mixture.windows[name] for name in strata)
    line = f"{share:.2%} of samples, {read / max(1, windows):.2f} epochs"
    if len(strata) == 1:
        return line
    whole = [name for name in strata if mixture.windows[name]]
    shown = sorted(whole, key=lambda name: (-epochs[name], name))[:_SHOWN]
    most = ", ".join(f"{name} {epochs[name]:.2f}" for name in shown)
    empty = len(strata) - len(whole)
    left_out = f"; {empty} shorter than a sample, left out" if empty else ""
    return f"{line}; {len(strata)} strata, most often read: {most}{left_out}"
