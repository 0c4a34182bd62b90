"""Prove bc2 on a new machine, and measure it there:

    python -P benchmarks/gpu.py --out DIR [--deadline 460] [--stages correctness,bench,...]

Needs torch, typer, rich, safetensors, sentencepiece, pyarrow, scipy, psutil and transformers, and
this repository as a folder; DeepSpeed's stage is left out, and said to be, where DeepSpeed is
missing. Without a GPU every stage runs in a small form, which tests the stages and not the machine.

With a longer --deadline each stage may take longer in proportion: give one where there is time,
since on a slow host compiling transformers' model takes longer than its share of 460 s.

DIR gets summary.md (begin there), results.jsonl (a row a check, as they come), env.json,
bench.json, kernels.csv, trace.json.gz and log.txt. Exit 0: no check failed; 1: one did, or a stage
crashed or hung; 2: wrong usage; 130 and 143: stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# The repository is a folder here, not an installed package.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from gpu_stages.driver import OUTPUTS, Run  # noqa: E402
from gpu_stages.stage_table import DEADLINES, Stage, choose  # noqa: E402


def main(arguments: Sequence[str] | None = None, stages: Sequence[Stage] | None = None) -> int:
    """Run the command.

    Args:
        stages: other ones than those of the table, for tests.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder for the results")
    parser.add_argument("--deadline", type=float, help="seconds for everything; 460 for all stages")
    parser.add_argument(
        "--stages", default="all", help="all, correctness, speed, or names: env,head,bench"
    )
    given = parser.parse_args(arguments)
    try:
        chosen = tuple(stages or choose(given.stages))
        deadline = given.deadline
        if deadline is None:
            deadline = DEADLINES.get(given.stages, DEADLINES["all"])
        _check_deadline(deadline, chosen)
        _prepare(given.out)
    except ValueError as error:
        print(f"gpu.py: error: {error}", file=sys.stderr)
        return 2
    return Run(given.out.resolve(), chosen, deadline).run()


def _check_deadline(deadline: float, stages: Sequence[Stage]) -> None:
    least = min(stage.needs_s for stage in stages)
    if not deadline >= least:
        raise ValueError(
            f"--deadline {deadline:g} is too short for any of these stages: the shortest takes "
            f"about {least:g} s"
        )


def _prepare(out: Path) -> None:
    """Make the folder of the results, and see that it can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        earlier = [name for name in OUTPUTS if (out / name).exists()]
        if earlier:
            raise ValueError(
                f"--out {out} has {earlier[0]} of an earlier run; give another folder, or remove it"
            )
        (out / OUTPUTS[0]).touch()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
