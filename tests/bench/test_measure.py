"""Contenders in turn, the figures of each, and a contender that fails."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bc2.bench import measure, process
from bc2.bench.bench_plan import make_bench_plan
from bc2.bench.data import write_shards
from bc2.bench.measure import _require_ours, _Running, run_benchmark
from bc2.bench.process import Workers
from bc2.bench.results import BenchResult, ContenderResult
from bc2.bench.spec import Spec
from bc2.console import progress
from bc2.errors import RunFailed
from bc2.recipe import load
from bc2.train.worker_process import WorkerFailed

SHAPE = """\
name = "shape"

[model]
vocab_size = 256
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 2
context_length = 128

[pretrain]
length = "10 steps"
batch_tokens = 1024
micro_batch = 4
sequence_length = 128
precision = "fp32"

[pretrain.schedule]
warmup = "2 steps"
"""

HEADER = {"id": "x", "time": "t", "recipe": {}, "machine": {}, "settings": {}}


def run(folder: Path, *overrides: str, **asked: object) -> BenchResult:
    options = {
        "steps": 3, "rounds": 2, "against": "hf", "peers": "fp32-eager", "ours": None,
        "layouts": (), "checkpointing": None, "peer_environment": "same", "documents": 0,
        "checkpoint": False,
    }  # fmt: skip
    (folder / "shape.toml").write_text(SHAPE)
    plan = make_bench_plan(load(folder / "shape.toml", overrides), **{**options, **asked})
    with progress("test", None) as bar:
        return run_benchmark(plan, folder / "scratch", bar, HEADER)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    """Two of ours and a peer, wide enough for the estimate of memory to mean something."""
    folder = tmp_path_factory.mktemp("measured")
    wide = ("model.vocab_size=4096", "model.hidden_size=256", "model.intermediate_size=768")
    result = run(folder, *wide, checkpointing="0,1", checkpoint=True)
    assert list((folder / "scratch").iterdir()) == []
    return result


def test_each_round_has_a_block_of_each_contender(measured: BenchResult) -> None:
    names = [found.name for found in measured.contenders]
    assert names == ["bc2-eager-checkpointing-0", "bc2-eager-checkpointing-1", "hf-fp32-eager"]
    for found in measured.contenders:
        assert found.failed is None
        assert [len(block) for block in found.rounds] == [3, 3]
        assert found.warmup_steps >= 3
        assert found.threads == 1
        # Uniformly random tokens: nothing can be known of the next one but the vocabulary.
        assert found.loss is not None
        assert 8 < found.loss < 10
    assert [(r.ours, r.peer, len(r.rounds)) for r in measured.ratios] == [
        (names[0], names[2], 2),
        (names[1], names[2], 2),
        (names[1], names[0], 2),
    ]
    assert measured.best_peer() == names[2]


class OnGpu:
    """Workers on a GPU, which only pretend."""

    asked: ClassVar[list[tuple[str, str]]] = []
    alive: ClassVar[set[str]] = set()

    def __init__(self, spec: Spec):
        self.spec = spec
        self.alive.add(spec.name)
        # All that is alive at once is on the GPU.
        assert self.alive == {spec.name}

    def begin(self) -> None:
        pass

    def close(self) -> None:
        self.alive.discard(self.spec.name)

    def ask_each(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        return [self.ask(do, **arguments)]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((self.spec.name, do))
        if self.spec.name == "hf-bf16-eager" and do == "warmup":
            raise WorkerFailed("OutOfMemoryError: CUDA out of memory", out_of_memory=True)
        second = 1.0 if self.spec.kind == "bc2" else 2.0 + len(self.asked) % 2
        return {
            "peak": {"flops": 5e14, "kept": 6e14},
            "keep": {"kept": 6e14},
            "warmup": {"steps": 3},
            "threads": {"threads": 1},
            "block": {"seconds": [second], "parts": {"forward": 0.5}, "loss": 9.0},
            "memory": {"baseline": 1, "peak": 9, "allocated": 7, "reserved": 8},
        }[do]


def test_on_a_gpu_one_contender_is_alive_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "Workers", OnGpu)
    monkeypatch.setattr(OnGpu, "asked", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    result = run(
        tmp_path, "pretrain.device=auto", "pretrain.precision=bf16",
        peers="bf16-eager,bf16-compiled",
    )  # fmt: skip
    ours, failed, peer = result.contenders
    assert failed.failed == "OutOfMemoryError: CUDA out of memory"
    blocks = [name for name, do in OnGpu.asked if do == "block"]
    # Two rounds, and one more for the times of parts.
    assert blocks == ["bc2-eager"] * 3 + ["hf-bf16-compiled"] * 3
    assert [do for name, do in OnGpu.asked if name == "matmul"] == ["peak"] * 6 + ["keep"]
    assert (result.peak.before, result.peak.after, result.peak.kept) == (5e14, 5e14, 6e14)
    assert [len(found.rounds) for found in (ours, peer)] == [2, 2]
    (ratio,) = result.ratios
    # Each of two rounds against each of two.
    assert (ratio.paired, len(ratio.rounds)) == (False, 4)
    assert sorted(set(ratio.rounds)) == sorted({block[0] for block in peer.rounds})


class Silent:
    """A rank that waits for one that is gone, without end."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def fileno(self) -> int:
        return self.read


class Failed(Silent):
    """One that has failed."""

    def __init__(self) -> None:
        super().__init__()
        os.close(self.write)

    def receive(self) -> None:
        raise WorkerFailed("OutOfMemoryError: CUDA out of memory", out_of_memory=True)


@pytest.mark.parametrize("ranks", [(Silent, Failed), (Failed, Silent, Silent)])
def test_ranks_that_wait_for_one_that_failed_are_not_waited_for(
    ranks: tuple[type[Silent], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.1)
    workers = Workers.__new__(Workers)
    workers._ranks = [rank() for rank in ranks]  # type: ignore[misc]
    with pytest.raises(WorkerFailed, match="CUDA out of memory"):
        workers._receive()


def test_of_several_ranks_the_one_that_died_says_why(tmp_path: Path) -> None:
    (tmp_path / "shape.toml").write_text(SHAPE)
    recipe = load(tmp_path / "shape.toml", ["pretrain.micro_batch=1"])
    asked = {"steps": 1, "rounds": 1, "against": None, "peers": None, "ours": None}
    more = {"checkpointing": None, "peer_environment": "same", "documents": 0, "checkpoint": False}
    plan = make_bench_plan(recipe, layouts=("2",), **asked, **more)
    shards = tmp_path / "shards"
    write_shards(shards, plan.model.vocab_size, plan.training, 0)
    spec = plan.contenders[1].model_copy(update={"shards": str(shards)})
    with closing(Workers(spec)) as workers:
        workers.begin()
        assert len(workers.ask_each("block", steps=1)) == 2
        workers._ranks[1]._process.kill()
        with pytest.raises(WorkerFailed, match="killed by the system"):
            workers.ask("block", steps=1)


def test_a_checkpoint_that_cannot_be_saved_costs_no_other_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shape.toml").write_text(SHAPE)
    asked = {"steps": 2, "rounds": 1, "against": None, "peers": None, "ours": None}
    more = {"checkpointing": None, "peer_environment": "same", "documents": 0, "checkpoint": True}
    plan = make_bench_plan(load(tmp_path / "shape.toml"), layouts=(), **asked, **more)

    class Full:
        """Workers whose disk is full."""

        spec = plan.contenders[0]

        def ask_each(self, do: str) -> list[dict[str, object]]:
            assert do == "memory"
            return [{"baseline": 1, "peak": 9, "allocated": 7, "reserved": None}]

        def ask(self, do: str, **_: object) -> None:
            assert do == "checkpoint"
            raise WorkerFailed("no space left on device")

    running = _Running(Full())  # type: ignore[arg-type]
    running.found["rounds"] = [[0.5, 0.5]]
    running.parts.append({"forward": 0.25})
    running.finish(2, 1)
    found = ContenderResult(name="bc2", kind="bc2", **running.found)
    assert found.checkpoint_failed == "no space left on device"
    assert found.checkpoint is None
    assert found.memory is not None
    assert found.parts == {"forward": 0.25}
    assert "no checkpoint could be timed: no space left" in capsys.readouterr().err


def test_parts_add_up_to_the_step(measured: BenchResult) -> None:
    ours, _, peer = measured.contenders
    assert set(ours.parts) == {"data", "forward", "head", "backward", "optimizer"}
    assert set(peer.parts) == {"data", "forward", "backward", "optimizer"}
    for found in measured.contenders:
        assert found.parts_step_s is not None
        assert sum(found.parts.values()) == pytest.approx(found.parts_step_s, rel=0.15)
        assert sum(found.parts.values()) <= found.parts_step_s


def test_memory_is_each_contenders_own_and_near_the_estimate(measured: BenchResult) -> None:
    kept, recomputed, _ = (found.memory for found in measured.contenders)
    assert kept is not None
    assert recomputed is not None
    for memory in (kept, recomputed):
        assert memory.reserved is None
        assert memory.estimate is not None
        assert 0 < memory.allocated < memory.peak - memory.baseline < memory.peak
        assert memory.allocated == pytest.approx(memory.estimate["total"], rel=0.1)
    assert recomputed.allocated < kept.allocated


def test_a_checkpoint_is_saved_while_training_goes_on(measured: BenchResult) -> None:
    ours, _, peer = measured.contenders
    assert peer.checkpoint is None
    saved = ours.checkpoint
    assert saved is not None
    assert 0 < saved.wait_s < saved.save_s
    # weights and two moments, all fp32
    assert saved.bytes == pytest.approx(3 * 4 * measured.params, rel=0.01)
    saves = len(saved.losses_s)
    assert saves == 2
    assert len(saved.before_s) == 3 * (saves + 1)
    assert len(saved.during_s) >= saves
    assert saved.lost_s == pytest.approx(sum(saved.losses_s) / 2)


def test_a_peer_that_fails_is_a_result_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Llama rotates pairs of channels, and 33 / 3 is odd; ALiBi does not mind.
    odd = ("model.position=alibi", "model.hidden_size=33", "model.num_heads=3")
    result = run(tmp_path, *odd)
    ours, peer = result.contenders
    assert ours.failed is None
    assert len(ours.rounds) == 2
    assert peer.failed is not None
    assert "Error" in peer.failed
    assert peer.rounds == []
    assert result.ratios == []
    assert result.best_peer() is None
    assert f"hf-fp32-eager failed: {peer.failed}" in capsys.readouterr().err


def test_without_any_of_ours_there_is_no_result() -> None:
    failed = ContenderResult(name="bc2-eager", kind="bc2", failed="RuntimeError: no")
    with pytest.raises(RunFailed, match="bc2-eager could not be measured: RuntimeError: no"):
        _require_ours([failed, ContenderResult(name="hf", kind="hf")], "pretrain")
    _require_ours([failed, ContenderResult(name="bc2-compiled", kind="bc2")], "pretrain")


@pytest.mark.slow
def test_compiled_contenders_of_both_kinds(tmp_path: Path) -> None:
    result = run(tmp_path, peers="autocast-compiled,bf16-compiled", ours="eager,compiled")
    assert [found.failed for found in result.contenders] == [None] * 4
