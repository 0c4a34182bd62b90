"""`bc2 plan` from the command line: its outputs, wrong usage, and what a run stores for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bc2.cli import main

ON_EIGHT = ("7b", "--gpus", "8", "--device", "h100", "--set", "parallel.zero=3")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Plan = Callable[..., Done]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs the command in this process: planning starts nothing."""

    def run(*args: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["plan", *args])
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def test_json_has_every_figure(plan: Plan) -> None:
    done = plan(*ON_EIGHT, "--price", "2.5/hour", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == 7_505_973_248
    assert set(found) >= {
        "recipe", "precision", "gpus", "device", "batch", "steps", "flops", "mfu", "hours",
        "device_hours", "cost", "disk", "own", "layouts",
    }  # fmt: skip
    assert found["cost"] == found["device_hours"] * 2.5
    for layout in found["layouts"]:
        assert layout["fits"]
        assert layout["memory"]["total"] <= found["device"]["usable"]
        parts = {name: size for name, size in layout["memory"].items() if name != "total"}
        assert sum(parts.values()) == layout["memory"]["total"]
        assert layout["reason"]


def test_a_model_with_a_scalar_head_is_planned(plan: Plan) -> None:
    one, other = plan(*ON_EIGHT, "--json"), plan(*ON_EIGHT, "--set", "model.head=scalar", "--json")
    assert other.returncode == 0, other.stderr
    language, scalar = json.loads(one.stdout), json.loads(other.stdout)
    assert scalar["parameters"] == 7_505_973_248 - 125_695 * 4096
    assert scalar["flops"]["token"] == language["flops"]["token"] - 6 * 125_695 * 4096
    assert scalar["own"]["memory"]["total"] < language["own"]["memory"]["total"]
    shown = plan(*ON_EIGHT, "--set", "model.head=classes", "--set", "model.num_classes=5")
    assert f"{7_505_973_248 - 125_691 * 4096:,}" in shown.stdout


def test_a_person_reads_tables_and_a_pipeline_names(plan: Plan) -> None:
    shown = plan(*ON_EIGHT)
    assert shown.returncode == 0, shown.stderr
    for word in ("7,505,973,248", "4,194,304 tokens = micro_batch", "moments", "assumed: --mfu"):
        assert word in shown.stdout
    names = plan(*ON_EIGHT, "--quiet").stdout.splitlines()
    assert len(names) > 5
    assert all("zero=" in name for name in names)


def test_nothing_fits_is_exit_6_with_what_would(plan: Plan) -> None:
    done = plan("7b", "--device", "a100", "--set", "parallel.zero=0")
    assert done.returncode == 6
    assert "take 2 devices" in done.stderr
    assert "to do:" in done.stderr


def test_wrong_input_is_exit_2(plan: Plan) -> None:
    for args, said in (
        ((), "no recipe was given"),
        (("7b",), "no device was given"),
        (("7b", "--device", "h1000"), "did you mean 'h100'?"),
        (("7b", "--device", "h100", "--gpus", "0"), "too few"),
        (("7b", "--device", "h100", "--gpus", "7", "--set", "parallel.zero=0"), "cannot share"),
        (("7b", "--device", "h100", "--mfu", "40"), "no share of the peak"),
    ):
        done = plan(*args)
        assert done.returncode == 2, (args, done.stderr)
        assert said in done.stderr


def test_a_run_stores_what_history_shows(small: Path, plan: Plan) -> None:
    assert plan("--history").stdout.strip() == "no run has stored its memory yet"
    train = ["pretrain", "small.toml", "--set", "pretrain.length=6 steps", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bc2", *train], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(plan("--history", "--json").stdout)["runs"]
    assert found["run"].startswith("small-")
    assert found["measure"] == "host resident"
    assert found["predicted"] > 0 < found["measured"]
    assert "%" in plan("--history").stdout


def test_a_plan_for_other_devices_imports_no_torch() -> None:
    code = (
        "import atexit, sys\n"
        "from bc2.cli import main\n"
        "heavy = ('torch', 'numpy', 'pyarrow', 'matplotlib')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        "main(['plan', '7b', '--gpus', '8', '--device', 'h100', '--quiet'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *layouts, imported = done.stdout.splitlines()
    assert "data=8 zero=2" in layouts
    assert imported == "[]"
