"""Results as tables: on a terminal, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bc2.bench.results import (
    SHEET,
    BenchResult,
    Checkpoint,
    ContenderResult,
    KeptResult,
    Memory,
    Ratio,
)
from bc2.console import Output, table, warn
from bc2.train.logs.log_rows import STEP_PARTS
from bc2.train.speed.mfu import mfu_text


class Table(NamedTuple):
    """Cells of text under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(result: BenchResult) -> list[Table]:
    """What a person reads of a result."""
    ran = [found for found in result.contenders if not found.failed]
    made = [_speed(result), _memory(ran), _parts(ran)]
    if result.ratios:
        made.insert(1, _ratios(result))
    if len({found.checkpointing for found in ran}) > 1:
        made.append(_checkpointing(result, ran))
    saves = [found for found in ran if found.checkpoint or found.checkpoint_failed]
    if saves:
        made.append(_checkpoints(saves))
    return made


def render_tables(made: Sequence[Table], lines: Sequence[str] = ()) -> Any:
    """Tables for a terminal, one below the other."""
    from rich.console import Group

    shown: list[Any] = []
    for each in made:
        shown += [table(each.columns, each.rows, title=each.title or None), ""]
    return Group(*shown, *lines)


def result_markdown(result: BenchResult) -> str:
    """A result as a Markdown page."""
    return markdown_tables(f"bc2 bench: {result.id}", list(setup_lines(result)), tables(result))


def markdown_tables(title: str, facts: Sequence[str], made: Sequence[Table]) -> str:
    """Tables as a Markdown page, below a list of what holds for all of them."""
    lines = [f"# {title}", "", *(f"- {line}" for line in facts), ""]
    for each in made:
        lines += [f"## {each.title}", "", _row(each.columns), _row(["---"] * len(each.columns))]
        lines += [*(_row(row) for row in each.rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def setup_lines(result: BenchResult) -> Iterator[str]:
    """What was measured, when, and on which machine: a line each."""
    machine, settings, peak = result.machine, result.settings, result.peak
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    yield (
        f"{result.params:,} parameters, {result.batch_tokens:,} tokens a step, "
        f"{settings['precision']} on {settings['device']}; {settings['rounds']} rounds of "
        f"{settings['steps']} steps, {result.time}"
    )
    if "headline" in settings:
        last = ", ".join(
            f"{found.name} {found.loss:.4g}"
            for found in result.contenders
            if found.loss is not None
        )
        yield f"{settings['algorithm']}; {settings['headline']} in the last step: {last}"
    yield f"{machine['cpu']}, {machine['cores']} cores; {machine['device']}; {packages}"
    sheet = f", datasheet {peak.datasheet / 1e12:.1f}" if peak.datasheet else ""
    yield (
        f"peak {result.peak_flops / 1e12:.3f} TFLOP/s measured ({peak.before / 1e12:.3f} before "
        f"the rounds, {peak.after / 1e12:.3f} after{_higher(result)}){sheet}"
    )


def _higher(result: BenchResult) -> str:
    """Where a peak was seen that is above both."""
    peak = result.peak
    if result.peak_flops > peak.measured:
        return f", {result.peak_flops / 1e12:.3f} by the fastest step"
    if peak.measured > max(peak.before, peak.after):
        return f", {peak.measured / 1e12:.3f} earlier on this machine"
    return ""


def _speed(result: BenchResult) -> Table:
    sheet = result.peak.datasheet
    columns = ["contender", "ms a step", "lowest to highest", "tokens/s", "TFLOP/s", "MFU"]
    rows = []
    for found in result.contenders:
        if found.failed:
            rows.append([found.name, f"failed: {found.failed}", *[""] * (4 + bool(sheet))])
            continue
        step, speed = found.step_s, result.tokens_per_s(found)
        row = [found.name, f"{step.median * 1e3:.1f}", _between(step.low, step.high, 1e3, 1)]
        row += [f"{speed.median:,.0f}", f"{speed.median * result.flops_per_token / 1e12:.3f}"]
        row.append(mfu_text(result.mfu(found, result.peak_flops), 1))
        rows.append([*row, mfu_text(result.mfu(found, sheet), 1, SHEET)] if sheet else row)
    return Table("Speed", [*columns, "MFU of datasheet"] if sheet else columns, rows)


def _between(low: float, high: float, scale: float, digits: int) -> str:
    return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"


def _ratios(result: BenchResult) -> Table:
    best = result.best_peer()
    rows = [_ratio(ratio, best) for ratio in result.ratios]
    columns = ["ours", "against", "times as fast", ratio_limits(result.ratios), ""]
    return Table("Against each other", columns, rows)


def ratio_limits(ratios: Sequence[Ratio]) -> str:
    """What the lowest and the highest of ratios are taken over."""
    paired = all(ratio.paired for ratio in ratios)
    return "lowest to highest round" if paired else "lowest to highest of any two rounds"


def _ratio(ratio: Ratio, best: str | None) -> list[str]:
    spread = ratio.spread
    mark = "the peer's best" if ratio.peer == best else ""
    between = _between(spread.low, spread.high, 1, 3)
    return [ratio.ours, ratio.peer, f"{spread.median:.3f}", between, mark]


def _memory(ran: Sequence[ContenderResult]) -> Table:
    gpu = any(found.memory and found.memory.reserved is not None for found in ran)
    columns = ["contender", "after imports", "peak", "peak above imports", "tensors"]
    columns += ["reserved on the GPU"] if gpu else []
    rows = [[f.name, *_memory_cells(f.memory, gpu)] for f in ran if f.memory is not None]
    return Table("Memory, MB", [*columns, "estimate", "tensors / estimate"], rows)


def _memory_cells(memory: Memory, gpu: bool) -> list[str]:
    values = [memory.baseline, memory.peak, memory.peak - memory.baseline, memory.allocated]
    if gpu:
        values.append(memory.reserved or 0)
    return [*(f"{value / 1e6:,.0f}" for value in values), *_estimate_cells(memory)]


def _estimate_cells(memory: Memory) -> list[str]:
    if memory.estimate is None:
        return ["", ""]
    total = memory.estimate["total"]
    return [f"{total / 1e6:,.0f}", f"{memory.allocated / total:.2f}"]


def _checkpointing(result: BenchResult, ran: Sequence[ContenderResult]) -> Table:
    rows = []
    for found in ran:
        if found.kind != "bc2" or found.memory is None or found.memory.estimate is None:
            continue
        parts = found.memory.estimate
        rows.append(
            [
                found.name,
                *(f"{parts[name] / 1e6:,.0f}" for name in ("activations", "recomputed")),
                f"{found.memory.taken / 1e6:,.0f}", *_estimate_cells(found.memory),
                f"{result.tokens_per_s(found).median:,.0f}",
            ]
        )  # fmt: skip
    columns = ["contender", "activations kept", "recomputed"]
    columns += ["taken in all", "estimate of tensors", "tensors / estimate", "tokens/s"]
    return Table("Activation checkpointing, MB", columns, rows)


def _parts(ran: Sequence[ContenderResult]) -> Table:
    names = [p for p in STEP_PARTS if any(p in found.parts for found in ran)]
    columns = ["contender", *names, "rest", "step"]
    return Table(
        "A step by part, mean ms and share (a peer's forward has its head and loss)",
        columns,
        [[found.name, *_part_cells(found, names)] for found in ran],
    )


def _part_cells(found: ContenderResult, names: Sequence[str]) -> list[str]:
    step = found.parts_step_s or 0.0
    spent = {name: found.parts.get(name, 0.0) for name in names}
    spent["rest"] = step - sum(spent.values())
    cells = [f"{s * 1e3:.1f} ({s / step:.0%})" if s else "" for s in spent.values()]
    return [*cells, f"{step * 1e3:.1f}"]


def _checkpoints(saves: Sequence[ContenderResult]) -> Table:
    rows = []
    for found in saves:
        saved = found.checkpoint
        if saved is None:
            rows.append([found.name, f"failed: {found.checkpoint_failed}", "", "", "", "", ""])
            continue
        before, during = statistics.median(saved.before_s), statistics.median(saved.during_s)
        rows.append(
            [
                found.name, f"{saved.wait_s * 1e3:.1f}", f"{saved.save_s:.2f}",
                f"{saved.bytes / 1e6:,.0f}", f"{before * 1e3:.1f}", f"{during * 1e3:.1f}",
                _lost(saved),
            ]
        )  # fmt: skip
    columns = ["contender", "loop waits, ms", "saved after, s", "MB", "ms a step", "during a save"]
    columns.append("lost in all, of a step")
    return Table("A checkpoint", columns, rows)


def _lost(saved: Checkpoint) -> str:
    if saved.lost_s is None or saved.lost_share is None:
        return ""
    lost = f"{saved.lost_s * 1e3:.0f} ms, {saved.lost_share:.1%}"
    if len(saved.losses_s) < 2:
        return lost
    low, high = (1e3 * limit for limit in (min(saved.losses_s), max(saved.losses_s)))
    return f"{lost} ({low:.0f} to {high:.0f} ms)"


def listing(results: Sequence[BenchResult]) -> Table:
    """One line for each kept result."""
    rows = []
    for result in results:
        ran = [f for f in result.contenders if f.kind == "bc2" and not f.failed]
        best = result.best_peer()
        ratio = next((r for r in result.ratios if r.peer == best), None)
        rows.append(
            [
                result.id, result.time, f"{result.tokens_per_s(ran[0]).median:,.0f}",
                f"{ratio.spread.median:.3f}" if ratio else "", best or "",
            ]
        )  # fmt: skip
    return Table("", ["result", "time (UTC)", "tokens/s", "ratio", "to peer"], rows)


def comparison(first: BenchResult, second: BenchResult) -> Table:
    """Two results side by side, for the contenders that both have."""
    rows = []
    theirs = {found.name: found for found in second.contenders if not found.failed}
    for found in first.contenders:
        if found.failed or found.name not in theirs:
            continue
        speeds = [
            first.tokens_per_s(found).median,
            second.tokens_per_s(theirs[found.name]).median,
        ]
        peaks = [each.memory.taken for each in (found, theirs[found.name]) if each.memory]
        rows.append(
            [
                found.name, *(f"{speed:,.0f}" for speed in speeds),
                f"{speeds[1] / speeds[0]:.3f}",
                *(f"{peak / 1e6:,.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.3f}",
            ]
        )  # fmt: skip
    columns = [
        "contender", "tokens/s, first", "second", "second / first",
        "MB taken, first", "second", "second / first",
    ]  # fmt: skip
    return Table(f"{first.id} and {second.id}", columns, rows)


def differences(first: BenchResult, second: BenchResult) -> Iterator[str]:
    """What makes two results no measure of the same thing, a line each."""
    return unlike(
        ("recipe", first.recipe, second.recipe),
        ("machine", lasting(first.machine), lasting(second.machine)),
        ("settings", first.settings, second.settings),
    )


def unlike(*pairs: tuple[str, dict[str, Any], dict[str, Any]]) -> Iterator[str]:
    """The names that two results give different values, for each kind of fact, a line each."""
    for what, mine, other in pairs:
        for name in sorted({*mine, *other}):
            if mine.get(name) != other.get(name):
                yield f"they differ in {what} {name}: {mine.get(name)} and {other.get(name)}"


def lasting(machine: dict[str, Any]) -> dict[str, Any]:
    """The facts of a machine that are the same tomorrow."""
    return {name: value for name, value in machine.items() if name != "load"}


def show_listing(output: Output, results: Sequence[KeptResult], shown: Table) -> None:
    """Print the kept results of a benchmark."""
    output.emit({"results": [result.as_json() for result in results]}, table=render_tables([shown]))


def show_comparison(
    output: Output, one: KeptResult, other: KeptResult, differing: Sequence[str], shown: Table
) -> None:
    """Print two kept results, after warnings of what makes them differ in kind."""
    for line in differing:
        warn(line)
    output.emit(
        {"first": one.as_json(), "second": other.as_json(), "differences": list(differing)},
        table=render_tables([shown]),
    )
