"""A process of its own: its answers, its errors, its death."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bc2.train.worker_process import WorkerFailed, WorkerProcess

ECHO = """\
import os, sys
from bc2.train.worker_process import serve

class Echo:
    def twice(self, text):
        print("a library talks")
        return {"text": 2 * text}
    def fail(self):
        raise ValueError("no such thing\\nsecond line")
    def lack(self, error, text):
        raise {"MemoryError": MemoryError, "RuntimeError": RuntimeError}[error](text)
    def leave(self):
        os._exit(3)

def build(line, held):
    if line.strip() == "bad":
        raise RuntimeError("cannot be built")
    return Echo()

if __name__ == "__main__":
    sys.exit(serve(build))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "echo_child.py").write_text(ECHO)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_answers_are_not_mixed_with_what_is_printed(environment: dict[str, str]) -> None:
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        assert child.ask("twice", text="ab") == {"text": "abab"}
        assert child.ask("twice", text="语") == {"text": "语语"}


def test_an_exception_is_the_answer(environment: dict[str, str]) -> None:
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        with pytest.raises(WorkerFailed, match=r"^ValueError: no such thing$"):
            child.ask("fail")


@pytest.mark.parametrize(
    ("error", "text", "lacks"),
    [
        ("MemoryError", "", True),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", True),
        ("RuntimeError", "CUDA error: out of memory", True),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", True),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_whether_memory_ran_out_is_told(
    error: str, text: str, lacks: bool, environment: dict[str, str]
) -> None:
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        with pytest.raises(WorkerFailed, match=error) as caught:
            child.ask("lack", error=error, text=text)
    assert caught.value.out_of_memory is lacks


def test_one_that_cannot_be_built(environment: dict[str, str]) -> None:
    with (
        WorkerProcess("echo_child", "bad", environment) as child,
        pytest.raises(WorkerFailed, match="cannot be built"),
    ):
        child.begin()


def test_one_that_does_not_even_start() -> None:
    with (
        WorkerProcess("no_such_module_here", "") as child,
        pytest.raises(WorkerFailed, match="No module named no_such_module_here"),
    ):
        child.begin()


def test_one_that_leaves_and_one_that_is_killed(environment: dict[str, str]) -> None:
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        with pytest.raises(WorkerFailed, match=r"died \(exit 3\)"):
            child.ask("leave")
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="memory runs out"):
            child.ask("twice", text="ab")


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_none_is_left_behind(environment: dict[str, str]) -> None:
    with WorkerProcess("echo_child", "good", environment) as child:
        child.begin()
        pid = child._process.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
