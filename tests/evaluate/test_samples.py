"""What becomes of samples needs neither the model nor the harness."""

from __future__ import annotations

import subprocess
import sys

MODULES = ("samples", "tally", "summary", "statistics", "tables", "requirements", "lm_eval_files")


def test_scores_are_worked_out_without_torch_and_lm_eval() -> None:
    imports = ", ".join(f"bc2.evaluate.{name}" for name in MODULES)
    heavy = "torch lm_eval datasets scipy transformers rich"
    code = (
        f"import sys, {imports}, bc2.harness.aggregate\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
