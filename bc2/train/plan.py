"""What a run reads and when it does what, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bc2.data.mixture import Mixture
from bc2.data.shards import TokenShards
from bc2.errors import RecipeError
from bc2.registry import Artifact
from bc2.tokenizer.config import TOKENIZER_FILE
from bc2.train.config import PretrainConfig
from bc2.train.duration import Duration
from bc2.train.metrics import check_trackers
from bc2.train.schedule import Schedule, learning_rate


@dataclass(frozen=True)
class Plan:
    """What a run reads and when it does what; made before anything is written."""

    shards: TokenShards
    mixture: Mixture
    schedule: Schedule
    tokenizer: Path


def prepare(config: PretrainConfig, tokens: Artifact, tokenizer: Artifact) -> Plan:
    """Open what a run reads, every file checked, and work out its schedule.

    Raises:
        RecipeError: settings that do not fit the data.
        IntegrityError: a file is not what was published.
        UsageError: a tracker that is not installed.
    """
    shards = _open_tokens(tokens)
    mixture = _mixture(shards, config)
    schedule = _schedule(config, mixture)
    check_trackers(config.track)
    return Plan(shards, mixture, schedule, tokenizer.file(TOKENIZER_FILE))


def _open_tokens(tokens: Artifact) -> TokenShards:
    """Open token shards after checking every file against its digest."""
    for name in tokens.files():
        tokens.file(name)
    return TokenShards.open(tokens.path)


def _mixture(shards: TokenShards, config: PretrainConfig) -> Mixture:
    windows = {
        source: (shards.num_tokens("train", source) - 1) // config.sequence_length
        for source in shards.sources("train")
    }
    return Mixture(windows, config.weights or None, config.seed)


def _steps(config: PretrainConfig, length: str, mixture: Mixture) -> int:
    epoch = sum(mixture.windows.values()) * config.sequence_length
    return Duration.parse(length).steps(batch_tokens=config.batch_tokens, epoch_tokens=epoch)


def _schedule(config: PretrainConfig, mixture: Mixture) -> Schedule:
    total = _steps(config, config.length, mixture)
    warmup = _steps(config, config.schedule.warmup, mixture)
    if warmup >= total:
        raise RecipeError(
            f"the warm-up of {warmup} steps does not end within the run of {total}",
            where="pretrain.schedule.warmup",
            todo="shorten the warm-up or lengthen the run",
        )

    def rate(step: int) -> float:
        return learning_rate(
            step,
            peak=config.optimizer.learning_rate,
            warmup=warmup,
            total=total,
            min_ratio=config.schedule.min_ratio,
        )

    return Schedule(
        total=total,
        checkpoint_every=_steps(config, config.checkpoint_every, mixture),
        eval_every=_steps(config, config.eval_every, mixture),
        log_every=config.log_every,
        learning_rate=rate,
        clip_norm=config.optimizer.clip_norm,
    )
