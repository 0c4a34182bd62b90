"""benchmarks/gpu.py: the real stages in their small form, and stages that go wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import psutil
import pytest
from gpu_stages.driver import OUTPUTS, Run
from gpu_stages.stage_table import GROUPS, Stage, choose

SCRIPT = Path(str(gpu.__file__))
BARE = Path(__file__).parent / "bare"


def rows_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "results.jsonl").read_text().splitlines()
    # What the torn stage writes; nothing is lost of the rows beside it.
    return [json.loads(line) for line in lines if line != '{"stage": "to']


def failed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("status") == "failed"]


def runs(pid: int) -> bool:
    """Whether a process is there; one that is dead may wait for PID 1 to notice."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------------- the real stages


@pytest.mark.parametrize(
    "stages",
    ["env,attention,head", "parity,resume", "nccl,generate", "compile,memory", "bench"],
)
def test_stages_pass_on_a_bare_cpu(
    stages: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BARE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # What else this machine does is no failure of a stage.
    patient = [replace(stage, limit_s=400) for stage in choose(stages)]
    code = gpu.main(["--out", str(tmp_path), "--deadline", "1200"], patient)
    rows = rows_of(tmp_path)
    assert failed(rows) == []
    assert code == 0
    ends = {row["stage"]: row["end"] for row in rows if "end" in row}
    assert ends == dict.fromkeys(stages.split(","), "ended")
    for stage in ends:
        assert any(row["stage"] == stage and row.get("status") == "passed" for row in rows), stage
    for row in rows:
        if "check" in row:
            assert row["why"], row
    summary = (tmp_path / "summary.md").read_text()
    assert summary in capsys.readouterr().out
    assert "**0 checks failed" in summary
    assert {path.name for path in tmp_path.iterdir()} <= set(OUTPUTS)
    if stages == "bench":
        bench = json.loads((tmp_path / "bench.json").read_text())
        assert len(bench) == 8
        assert (tmp_path / "kernels.csv").read_text().startswith("kernel,microseconds,share,calls")
        assert (tmp_path / "trace.json.gz").stat().st_size < 2_000_000
    if "env" in ends:
        assert json.loads((tmp_path / "env.json").read_text())["packages"]["torch"]
        assert "absent: " in summary


def test_zero_against_local(tmp_path: Path) -> None:
    patient = [replace(stage, limit_s=400) for stage in choose("zero")]
    assert gpu.main(["--out", str(tmp_path)], patient) == 0
    passed = [row for row in rows_of(tmp_path) if row.get("status") == "passed"]
    assert len(passed) == 14


def test_zero_is_not_run_where_deepspeed_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BARE))
    assert gpu.main(["--out", str(tmp_path), "--stages", "zero"]) == 0
    said = [row for row in rows_of(tmp_path) if "check" in row]
    assert len(said) == 7
    assert {row["status"] for row in said} == {"not run"}
    assert "zero: ZeRO 1 and 6 more: DeepSpeed is not" in (tmp_path / "summary.md").read_text()


# ------------------------------------------------------------------------- stages that go wrong

STAGES = {
    "good": """
    checks.within("a sum", 0.5, 1.0, "it is")
    checks.figure("speed", 7, "m/s", key=True)
    import os, bc2
    first = os.environ["PYTHONPATH"].split(os.pathsep)[0]
    checks.true("workers find this bc2", bc2.__file__.startswith(first + "/bc2"), first, "it is")
""",
    "broken": """
    checks.within("a sum", 1.5, 1.0, "it is")
    checks.within("no number", float("nan"), 1.0, "it is")
    with checks.part("a part"):
        raise ValueError("no")
    checks.true("the rest", True, "this", "it is")
""",
    "crashing": """
    import os, signal
    os.kill(os.getpid(), signal.SIGSEGV)
""",
    "torn": """
    checks.path.open("ab").write(b'{"stage": "to')
    raise SystemExit(3)
""",
    "hanging": """
    import subprocess, time
    checks.figure("sleeper", subprocess.Popen(["sleep", "300"], start_new_session=True).pid)
    time.sleep(300)
""",
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes stages of the names above, and starts the command with them."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, body in STAGES.items():
        (folder / f"made_{name}.py").write_text(f"def run(checks, part):{body}")
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def run(stages: list[Stage]) -> tuple[int, list[dict[str, Any]]]:
        out = tmp_path / "out"
        code = gpu.main(["--out", str(out), "--deadline", "400"], stages)
        return code, rows_of(out)

    return run


def test_what_fails_makes_exit_1_and_the_next_stage_runs(made: Any, tmp_path: Path) -> None:
    stages = [Stage("long", "takes long", 500, 600, module="made_good")]
    stages += [Stage(n, f"is {n}", 1, 60, module=f"made_{n}") for n in STAGES if n != "hanging"]
    code, rows = made([*stages[:1], *stages[2:], stages[1]])
    assert code == 1
    found = {(row["stage"], row["check"]): row for row in failed(rows)}
    assert list(found) == [
        ("broken", "a sum"),
        ("broken", "no number"),
        ("broken", "a part"),
        ("crashing", "the process ends well"),
        ("torn", "the process ends well"),
    ]
    assert found["broken", "a part"]["saw"].startswith("ValueError: no (made_broken.py:")
    assert found["crashing", "the process ends well"]["saw"] == "killed by SIGSEGV"
    assert "made_crashing.py" in found["crashing", "the process ends well"]["last_lines"]
    assert found["torn", "the process ends well"]["saw"] == "ended with exit code 3"
    ends = {row["stage"]: (row["end"], row["why"]) for row in rows if "end" in row}
    assert "it takes about 500 s" in ends["long"][1]
    assert ends["good"] == ("ended", None)
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "**5 checks failed, 3 passed.** Stages that did not run: long." in summary
    assert "- **broken: a sum**: 1.5 > 1.0 (it is)" in summary
    assert "- **broken: no number**: nan > 1.0 (it is)" in summary
    assert "| long | takes long | 0 | 0 | 0 | – | **did not run**: " in summary
    assert "| good | is good | 2 | 0 | 0 |" in summary
    assert "speed 7 m/s" in summary


def test_a_stage_that_hangs_is_killed_with_all_that_it_started(made: Any) -> None:
    began = time.monotonic()
    code, rows = made([Stage("hanging", "hangs", 1, 20, module="made_hanging")])
    assert time.monotonic() - began < 100
    assert code == 1
    (row,) = failed(rows)
    assert row["saw"] == "killed: it had not ended after 20 s"
    # Where it hung.
    assert "made_hanging.py" in row["last_lines"]
    (pid,) = [row["value"] for row in rows if row.get("figure") == "sleeper"]
    assert not runs(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary_and_no_processes(
    number: signal.Signals, made: Any, tmp_path: Path
) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu\n"
        "from gpu_stages.stage_table import Stage\n"
        "stages = [Stage(n, n, 1, 60, module=f'made_{n}') for n in ('hanging', 'good')]\n"
        "sys.exit(gpu.main(['--out', sys.argv[2], '--deadline', '100'], stages))\n"
    )
    out = tmp_path / "stopped"
    command = [sys.executable, "-P", "-c", program, str(SCRIPT.parent), str(out)]
    path = out / "results.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 90
            while not path.exists() or "sleeper" not in path.read_text():
                assert time.monotonic() < end
                time.sleep(0.2)
        finally:
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said.decode()
    assert b"Traceback" not in said
    rows = rows_of(out)
    assert {row["stage"]: row["end"] for row in rows if "end" in row} == {
        "hanging": "failed", "good": "not run",
    }  # fmt: skip
    (pid,) = [row["value"] for row in rows if row.get("figure") == "sleeper"]
    assert not runs(pid)
    assert "The run was stopped before its end." in (out / "summary.md").read_text()


@pytest.mark.parametrize(("deadline", "limit"), [(180.0, 60.0), (460.0, 60.0), (1380.0, 180.0)])
def test_a_run_with_more_time_gives_more_of_it_to_each_stage(
    deadline: float, limit: float, tmp_path: Path
) -> None:
    stage = Stage("good", "is good", 1, 60)
    assert Run(tmp_path, [stage], deadline)._limit(stage) == pytest.approx(limit)


# ------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "atention"], "did you mean attention?"),
        (["--stages", "speed,zzz"], "there are env, attention"),
        (["--stages", ","], "names none"),
        (["--deadline", "1"], "too short for any"),
        (["--deadline", "nan"], "too short for any"),
        (["--deadline", "-5", "--stages", "bench"], "the shortest takes about 90 s"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert gpu.main(["--out", str(out), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_used_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below", Path("/proc/bc2")):
        assert gpu.main(["--out", str(out)]) == 2
        assert f"--out {out} cannot be written" in capsys.readouterr().err
    (tmp_path / "summary.md").touch()
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "summary.md of an earlier run" in capsys.readouterr().err


def test_the_two_halves_are_all() -> None:
    assert choose("speed,correctness") == choose("all") == GROUPS["all"]
    assert [stage.name for stage in choose("bench, env")] == ["env", "bench"]
