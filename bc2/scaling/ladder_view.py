"""A ladder as tables and JSON: what it will take, how it goes, what came of it."""

from __future__ import annotations

from typing import Any

from bc2.console import table
from bc2.report.number_format import NOTHING, amount, decimals, duration, rate
from bc2.scaling.ladder_run import LadderEntry, LadderProgress

#: What the counts are, below the tables.
COUNTS = (
    "N: parameters without embedding and head. FLOPs: counted, with head and attention; "
    "6ND beside them has neither."
)


def summary(progress: LadderProgress) -> Any:
    """What each member will take, before anything is trained."""
    columns = ["member", "N", "parameters", "tokens", "tokens/N", "epochs", "steps",
               "batch_tokens", "learning rate", "FLOPs", "6ND", "time"]  # fmt: skip
    rows = [_summary_row(progress, entry) for entry in progress.entries]
    members = [entry.member for entry in progress.entries]
    rows.append(
        ["in all", "", "", amount(sum(one.tokens for one in members)), "", "", "", "", "",
         f"{progress.flops:.2e}", f"{sum(one.flops_6nd for one in members):.2e}",
         duration(sum(map(progress.expected_s, progress.entries)))]
    )  # fmt: skip
    title = f"The ladder {progress.ladder.name}: time at {progress.assumption}. {COUNTS}"
    return table(columns, rows, title)


def _summary_row(progress: LadderProgress, entry: LadderEntry) -> list[object]:
    one = entry.member
    epochs = progress.epochs(entry)
    return [
        one.name, amount(one.params), amount(one.params_total), amount(one.tokens),
        f"{one.tokens_per_param:,.2f}", NOTHING if epochs is None else f"{epochs:.2f}",
        f"{one.steps:,}", f"{one.batch_tokens:,}", rate(one.learning_rate), f"{one.flops:.2e}",
        f"{one.flops_6nd:.2e}", duration(progress.expected_s(entry)),
    ]  # fmt: skip


def live(progress: LadderProgress) -> Any:
    """How the ladder goes: above the bar of the run under way."""
    rows = [
        [
            entry.member.name, amount(entry.member.params), amount(entry.member.tokens),
            _status(entry), decimals(entry.facts.get("heldout_loss")), _time(progress, entry),
        ]
        for entry in progress.entries
    ]  # fmt: skip
    left = f"about {duration(progress.left_s())} left" if progress.left_s() else "done"
    title = f"The ladder {progress.ladder.name}: {left}"
    return table(["member", "N", "tokens", "status", "held-out loss", "time"], rows, title)


def _status(entry: LadderEntry) -> str:
    if entry.status == "failed":
        return f"failed: {entry.reason}"
    return "found" if entry.status == "finished" and not entry.made else entry.status


def _time(progress: LadderProgress, entry: LadderEntry) -> str:
    if entry.status in ("waiting", "training"):
        return f"about {duration(progress.expected_s(entry))}"
    return duration(entry.seconds)


def result(progress: LadderProgress) -> Any:
    """What came of the members."""
    columns = ["ref", "member", "N", "tokens", "FLOPs", "held-out loss", "bits/byte", "time",
               "status"]  # fmt: skip
    rows = [
        [
            entry.artifact.ref if entry.artifact else NOTHING, entry.member.name,
            amount(entry.member.params), amount(entry.member.tokens), f"{entry.member.flops:.2e}",
            decimals(entry.facts.get("heldout_loss")), decimals(entry.facts.get("bits_per_byte")),
            duration(entry.seconds), _status(entry),
        ]
        for entry in progress.entries
    ]  # fmt: skip
    return table(columns, rows)


def as_json(progress: LadderProgress) -> dict[str, Any]:
    """A ladder and its members as JSON data."""
    ladder = progress.ladder
    return {
        "name": ladder.name,
        "tag": ladder.name,
        "epoch_tokens": progress.epoch_tokens,
        "flops": progress.flops,
        "expected_seconds": sum(map(progress.expected_s, progress.entries)),
        "members": [_member_json(progress, entry) for entry in progress.entries],
    }


def _member_json(progress: LadderProgress, entry: LadderEntry) -> dict[str, Any]:
    one, artifact = entry.member, entry.artifact
    return {
        "name": one.name,
        "label": one.label,
        "ref": artifact.ref if artifact else None,
        "digest": artifact.digest if artifact else None,
        "status": entry.status,
        "made": entry.made,
        "reason": entry.reason,
        "extrapolation": one.extrapolation,
        "params": one.params,
        "params_total": one.params_total,
        "tokens": one.tokens,
        "tokens_per_param": one.tokens_per_param,
        "epochs": progress.epochs(entry),
        "steps": one.steps,
        "flops": one.flops,
        "flops_6nd": one.flops_6nd,
        "expected_seconds": progress.expected_s(entry),
        "seconds": entry.seconds,
        "learning_rate": one.learning_rate,
        "batch_tokens": one.batch_tokens,
        "seed": one.seed,
        "heldout_loss": entry.facts.get("heldout_loss"),
        "bits_per_byte": entry.facts.get("bits_per_byte"),
        "heldout_sha256": entry.facts.get("heldout_sha256"),
        "overrides": list(one.overrides),
    }
