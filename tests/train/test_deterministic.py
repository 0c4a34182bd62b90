"""`--deterministic`: the same bits from processes that share nothing but the recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bc2.registry import Registry
from bc2.train import deterministic as module
from bc2.train.deterministic import deterministic, in_any_order, physical_cores

BC2 = [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", "--json", "--deterministic"]


def test_what_is_set_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "physical_cores", lambda: 3)
    threads = torch.get_num_threads()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.get_num_threads() == 3
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_num_threads() == threads
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_number_of_threads_that_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "physical_cores", lambda: 3)
    threads = torch.get_num_threads()
    with deterministic(True):
        assert torch.get_num_threads() == threads


def test_the_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 9})
    monkeypatch.setattr(module, "_TOPOLOGY", str(tmp_path / "{}"))
    for number, siblings in ((0, "0,4"), (1, "1,5"), (4, "0,4")):
        (tmp_path / str(number)).write_text(f"{siblings}\n")
    assert physical_cores() == 3  # 0 with 4, 1, and 9 of which nothing is known


def test_an_operation_without_a_deterministic_kernel_is_refused() -> None:
    def put() -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    with deterministic(True):
        with pytest.raises(RuntimeError, match="deterministic"):
            put()
        with in_any_order():
            put()
        with pytest.raises(RuntimeError, match="deterministic"):
            put()
    with in_any_order():
        put()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_make_the_same_bits(
    small: Path, tmp_path_factory: pytest.TempPathFactory, precision: str
) -> None:
    """At once, so that each is the other's load; one recomputes its activations."""
    import shutil

    folders = [small, tmp_path_factory.mktemp("other") / "run"]
    shutil.copytree(small, folders[1])
    sets = ["length=8 steps", f"precision={precision}", "eval_tokens=512"]
    started = []
    for number, folder in enumerate(folders):
        words = [*sets, f"activation_checkpointing={number}"]
        command = [*BC2, *(word for text in words for word in ("--set", f"pretrain.{text}"))]
        environment = {**os.environ, "BC2_HOME": str(folder / "home")}
        # two threads, which add in parts; the hash seed is what sets are ordered by
        environment |= {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": str(number + 1)}
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    digests = []
    for folder, process in zip(folders, started, strict=True):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        digests.append(json.loads(out)["digest"])
        (run,) = Registry.open(folder / "home").runs.iterdir()
        start = json.loads((run / "timing.jsonl").read_text().splitlines()[0])
        assert (start["deterministic"], start["threads"]) == (True, 2)
    assert digests[0] == digests[1]
