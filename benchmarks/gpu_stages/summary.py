"""summary.md, env.json and bench.json, from the rows of results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu_stages.stage_table import Stage

Rows = list[dict[str, Any]]

HOW_TO_READ = """\
A check compares with a reference and has a limit, which stands with its reason in results.jsonl.
"not run" proves nothing: the machine lacks what the check needs, or there was no time. A stage that
crashed, hung or was killed has a failed check that says so; log.txt has all that it printed."""


def write_summary(
    out: Path, stages: Sequence[Stage], rows: Rows, left: float, *, stopped: bool
) -> bool:
    """Write the three files.

    Args:
        left: seconds to the deadline.
        stopped: whether a signal ended the run.

    Returns:
        Whether no check failed.
    """
    env = next((row for row in rows if row.get("record") == "env"), {})
    bench = [row for row in rows if row.get("record") == "bench"]
    env = {k: v for k, v in env.items() if k not in ("record", "at_s", "stage")}
    (out / "env.json").write_text(json.dumps(env, indent=2) + "\n", encoding="utf-8")
    (out / "bench.json").write_text(json.dumps(bench, indent=2) + "\n", encoding="utf-8")
    failed = [row for row in rows if row.get("status") == "failed"]
    missing = [row for row in rows if row.get("status") == "not run"]
    lines = ["# bc2 on this machine", "", *_machine(env), "", _verdict(rows, stopped), ""]
    lines += _table(stages, rows)
    if bench:
        lines += ["", "## Speed", "", *_bench_table(bench)]
    if failed:
        lines += ["", "## Failed", "", *map(_failed_line, failed)]
    if missing:
        lines += ["", "## Not run", ""]
        lines += _missing_lines(missing)
    seconds = sum(row["seconds"] for row in rows if "end" in row)
    lines += ["", "## How to read this", "", HOW_TO_READ, ""]
    lines += [f"All stages took {seconds:.0f} s; {max(0.0, left):.0f} s were left.", ""]
    (out / "summary.md").write_text("\n".join(lines), encoding="utf-8")
    return not failed


def _machine(env: dict[str, Any]) -> list[str]:
    if not env:
        return ["The machine is not known: the stage env did not run."]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items() if v)
    absent = ", ".join(k for k, v in env["packages"].items() if not v) or "none"
    lines = [f"- **{env['device']}**"]
    if env["device_type"] == "cuda":
        lines[0] += (
            f", {env['memory_bytes'] / 2**30:.1f} GiB, compute capability {env['capability']}, "
            f"driver {env['driver']}, CUDA {env['cuda']}, cuDNN {env['cudnn']}, "
            f"NCCL {env['nccl']}; {env['devices']} such device(s) visible"
        )
    else:
        lines[0] += " (no GPU: every stage ran in its small form, which proves nothing of a GPU)"
    return [
        *lines,
        f"- host: {env['host']}, {env['cores']} cores, {env['system']}, Python {env['python']}",
        f"- {packages}; absent: {absent}",
    ]


def _verdict(rows: Rows, stopped: bool) -> str:
    count = {s: sum(row.get("status") == s for row in rows) for s in ("passed", "failed")}
    skipped = [row["stage"] for row in rows if row.get("end") == "not run"]
    text = f"**{count['failed']} checks failed, {count['passed']} passed.**"
    if stopped:
        text += " The run was stopped before its end."
    if skipped:
        text += f" Stages that did not run: {', '.join(skipped)}."
    return text


def _table(stages: Sequence[Stage], rows: Rows) -> list[str]:
    lines = [
        "| stage | | passed | failed | not run | seconds | figures |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for stage in stages:
        mine = [row for row in rows if row["stage"] == stage.name]
        end = next((row for row in mine if "end" in row), {"end": "not run", "seconds": 0.0})
        count = [sum(r.get("status") == s for r in mine) for s in ("passed", "failed", "not run")]
        figures = ", ".join(_figure(row) for row in mine if row.get("key"))
        seconds: object = end["seconds"]
        if end["end"] == "not run":
            figures, seconds = f"**did not run**: {end.get('why')}", "–"
        cells = (stage.name, stage.what, *count, seconds, figures)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _figure(row: dict[str, Any]) -> str:
    return f"{row['figure']} {row['value']} {row['unit']}".strip()


def _failed_line(row: dict[str, Any]) -> str:
    saw = f"{row['value']} > {row['limit']}" if "limit" in row else row.get("saw")
    lines = row.get("last_lines", "").splitlines()
    more = ["", "", *(f"      {line}" for line in lines), ""] if lines else []
    return f"- **{row['stage']}: {row['check']}**: {saw} ({row['why']})" + "\n".join(more)


def _missing_lines(missing: Rows) -> list[str]:
    """A line a stage and reason: many checks may lack the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in missing:
        found.setdefault((row["stage"], row["why"]), []).append(row["check"])
    return [
        f"- {stage}: {checks[0]}"
        + (f" and {len(checks) - 1} more" if checks[1:] else "")
        + f": {why}"
        for (stage, why), checks in found.items()
    ]


#: Columns of the speed table: header, key, digits.
_COLUMNS = (
    ("ms a step", "ms", 1), ("tokens/s", "tokens_per_s", 0), ("MFU, %", "mfu_percent", 1),
    ("peak, GB", "peak_gb", 1), ("of transformers' speed", "ratio", 2),
)  # fmt: skip


def _bench_table(bench: Rows) -> list[str]:
    first = bench[0]
    lines = [
        f"{first['shape']}, sequences of {first['sequence_length']}, {first['precision']}; "
        f"MFU of {first['peak_tflops']:.1f} TFLOP/s ({first['peak_source']}).",
        "",
        "| contender | sequences a micro-batch | " + " | ".join(c[0] for c in _COLUMNS) + " |",
        "|---|---:|" + "---:|" * len(_COLUMNS),
    ]
    for row in bench:
        row = {**row, "ratio": _ratio(row, bench)}
        cells = [_number(row.get(key), digits) for _, key, digits in _COLUMNS]
        lines.append(f"| {row['contender']} | {row['micro_batch']} | " + " | ".join(cells) + " |")
    return lines


def _ratio(row: dict[str, Any], bench: Iterable[dict[str, Any]]) -> float | None:
    """Tokens a second over those of transformers, both eager or both compiled."""
    if not row["contender"].startswith("ours"):
        return None
    peer = row["contender"].replace("ours", "hf")
    for other in bench:
        if other["contender"] == peer and other["micro_batch"] == row["micro_batch"]:
            return float(row["tokens_per_s"] / other["tokens_per_s"])
    return None


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
