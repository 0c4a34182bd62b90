"""Two processes at one run: exactly one trains, and the other says so and leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bc2.files import lock_directory
from bc2.registry import Registry

#: A step is made when the file `go` allows it.
GATE = """
def gate(step):
    while int(open("go").read() or 0) < step:
        time.sleep(0.05)
"""
GATED = {8 * step: f"gate({step + 1})" for step in range(12)}


def rows(*events: str) -> list[dict[str, Any]]:
    logs = [folder / "timing.jsonl" for folder in Registry.open().runs.iterdir()]
    lines = [line for log in logs for line in log.read_bytes().splitlines(keepends=True)]
    made = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [row for row in made if row["event"] in events]


def first_to_end(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    until = time.monotonic() + 100
    while True:
        for process in processes:
            if process.poll() is not None:
                return process
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    "rounds", [(4, 12), pytest.param((2, 4, 6, 8, 10, 12), marks=pytest.mark.slow)]
)
def test_of_two_at_once_one_trains(small: Path, launch, straight, rounds: tuple[int]) -> None:
    """Started together, then both resuming what the one that trained had saved, to the end."""
    go = small / "go"
    go.write_text("0")
    for last in rounds:
        pair = [launch(setup=GATE, actions=GATED) for _ in range(2)]
        refused = first_to_end(pair)
        (trains,) = [process for process in pair if process is not refused]
        _, err = refused.communicate()
        assert refused.returncode == 1, err
        assert "error: another process is training 'small'" in err
        (folder,) = Registry.open().runs.iterdir()
        assert f"where: {folder}" in err
        assert "Traceback" not in err
        go.write_text(str(last))
        if last == 12:
            break
        until = time.monotonic() + 60
        while len(rows("step")) < last:
            assert trains.poll() is None, trains.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        trains.send_signal(signal.SIGTERM)
        go.write_text(str(last + 1))  # the step at the gate is abandoned behind it
        _, err = trains.communicate(timeout=60)
        assert trains.returncode == 143, err
    out, err = trains.communicate(timeout=100)
    assert trains.returncode == 0, err
    assert straight().digest.startswith(out.strip())
    # no attempt but those three, and each went on from where the one before stopped
    assert [row["step"] for row in rows("stop")] == [*rounds[:-1]]
    assert [row["step"] for row in rows("start", "resume")] == [0, *rounds[:-1]]
    assert [row["step"] for row in rows("step")] == list(range(1, 13))


def test_a_glance_at_the_lock_is_no_process_at_the_run(small: Path, train, launch) -> None:
    """Whoever only looks whether it is held holds it for a moment."""
    key = train().key
    shutil.rmtree(Registry.open().runs)
    lock = Registry.open().work / f"pretrain-{key}"
    glance = (
        "import sys, time; from pathlib import Path; from bc2.files import lock_directory\n"
        "with lock_directory(Path(sys.argv[1])) as held:\n"
        "    print(held, flush=True); time.sleep(0.7)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", glance, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert train(fresh=True).finished
    process.communicate(timeout=20)


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_that_stays_held_is_refused(small: Path, train, straight, shared: bool) -> None:
    from bc2.errors import RunFailed

    lock = Registry.open().work / f"pretrain-{straight().key}"
    lock.mkdir(parents=True)
    with lock_directory(lock, shared=shared) as held:
        assert held
        with pytest.raises(RunFailed, match="another process is training 'small'"):
            train()
