"""What the members of a ladder share: token shards, made once; and the speed that is expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bc2.console import note
from bc2.errors import DataError, RefError, UsageError
from bc2.pipeline.session import Session
from bc2.pipeline.stage import Inputs
from bc2.plan.training_plan import MFU
from bc2.registry import Registry
from bc2.registry.lineage import parent_of_kind
from bc2.scaling.ladder import Ladder, LadderMember
from bc2.scaling.ladder_run import LadderProgress
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import open_token_inputs


def expected(
    ladder: Ladder, members: Sequence[LadderMember], nproc: int, mfu: float | None = None
) -> LadderProgress:
    """A ladder that has not begun, with the speed of this machine's device at a stated MFU.

    Raises:
        UsageError: the device is not there, or an MFU outside of 0 to 1.
    """
    from bc2.train.device import pick_device, pick_precision
    from bc2.train.speed.peak_flops import peak_flops

    share = MFU if mfu is None else mfu
    if not 0 < share <= 1:
        raise UsageError(f"--mfu {share:g} is no share of the peak", todo="give 0 to 1, e.g. 0.4")
    training = ladder.members[0].settings.training
    device = pick_device(training.device)
    peak, source = peak_flops(device, pick_precision(training.precision, device))
    # Ranks on a CPU share it.
    peak *= nproc if device.type == "cuda" else 1
    assumption = f"{share:.1%} (assumed) of {peak / 1e12:.2f} TFLOP/s ({source})"
    return LadderProgress.of(ladder, members, share * peak, assumption)


def find_epoch(registry: Registry, ladder: Ladder) -> int | None:
    """Tokens of one pass over the training split, if the token shards are there already."""
    if registry.is_blank():
        return None
    try:
        inputs = Session(registry).find_inputs("checkpoint", ladder.recipe)
    except (DataError, RefError) as error:
        note(f"the epochs are not known: {error}")
        return None
    return _epoch_tokens(registry, inputs, ladder.members[:1]) if inputs else None


def prepare(registry: Registry, progress: LadderProgress, before_work: Callable[[], None]) -> None:
    """Make corpus, tokenizer and token shards once, and check all members against them.

    Args:
        before_work: called before the first of them is made.

    Raises:
        RecipeError: a member would read some text more often than pretrain.max_epochs.
    """
    session = Session(registry, before_work=before_work)
    inputs = session.obtain_inputs("checkpoint", progress.ladder.recipe)
    members = [entry.member for entry in progress.entries]
    known = progress.epoch_tokens
    progress.epoch_tokens = _epoch_tokens(registry, inputs, members)
    if known is None:
        epochs = [one.tokens / progress.epoch_tokens for one in members]
        note(
            f"the training split has {progress.epoch_tokens:,} tokens: the members read "
            f"{min(epochs):.2f} to {max(epochs):.2f} epochs of it"
        )


def _epoch_tokens(registry: Registry, inputs: Inputs, members: Sequence[LadderMember]) -> int:
    """Tokens of one pass over the training split, which each member's settings must fit."""
    tokens = inputs.one("tokens")
    tokenizer = parent_of_kind(registry, tokens, "tokenizer")
    epoch = 0
    for member in members:
        config = member.settings.training
        assert isinstance(config, PretrainConfig)
        # Files are checked when a run begins.
        opened = open_token_inputs(config, tokens, tokenizer)
        epoch = sum(opened.mixture.windows.values()) * config.sequence_length
    return epoch
