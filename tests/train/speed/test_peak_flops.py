"""The peak of a device: the best of tries in turn, kept with the machine, never lowered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bc2.train.speed import peak_flops as module
from bc2.train.speed.peak_flops import (
    AGAIN_S,
    FIRST_S,
    MATMUL,
    STEP,
    KeptPeaks,
    Peak,
    keep_peak,
    measure_matmul,
    peak_flops,
    peak_key,
)

CPU = torch.device("cpu")
KEY = "a processor, 2 cores, 2 threads, fp32, torch 2"

Machine = Callable[[dict[int, list[float]]], list[int]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A clock that products alone move on, each with a speed of its own.

    Called with the FLOP/s of the products of each side, one after another; the last goes on.
    It returns the sides that were tried, in their order.
    """
    now = [0.0]

    def install(speeds: dict[int, list[float]]) -> list[int]:
        tried: list[int] = []

        class Product:
            def __init__(self, device: torch.device, dtype: torch.dtype, side: int):
                assert (device, dtype) == (CPU, torch.float32)
                self.side = side

            def flops(self) -> float:
                tried.append(self.side)
                left = speeds[self.side]
                speed = left.pop(0) if len(left) > 1 else left[0]
                now[0] += 2 * self.side**3 / speed
                return speed

        monkeypatch.setattr(module, "_Product", Product)
        return tried

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return install


def test_the_best_of_several_sizes_counts(machine: Machine) -> None:
    tried = machine({512: [4e11], 1024: [5e11], 2048: [9e11], 4096: [7e11]})
    assert measure_matmul(CPU, torch.float32, seconds=1.0) == 9e11
    assert set(tried) == {512, 1024, 2048, 4096}


def test_sizes_take_turns_so_that_a_busy_moment_takes_no_size_whole(machine: Machine) -> None:
    # Something else runs at first: every size is ten times as slow when it is first tried.
    busy = {side: [1e11, 1e11, 1e12] for side in (512, 1024, 2048)} | {4096: [1e11]}
    tried = machine(busy)
    assert measure_matmul(CPU, torch.float32, seconds=1.0) == 1e12
    # A product of side 4096 would take longer than its share, as it seemed then.
    assert tried[:9] == [512, 1024, 2048] * 3


def test_a_size_that_would_take_too_long_is_left_out(machine: Machine) -> None:
    tried = machine({512: [9e9], 1024: [9e9]})
    measure_matmul(CPU, torch.float32, seconds=0.6)
    assert set(tried) == {512}


def test_a_measured_peak_changes_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert measure_matmul(CPU, torch.float32, seconds=0.01) > 1e8
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture
def kept(tmp_path: Path) -> KeptPeaks:
    return KeptPeaks(tmp_path / "cache" / "peaks.json")


def measuring(monkeypatch: pytest.MonkeyPatch, *found: float) -> list[float]:
    """Have measurements find these; the seconds that each may take."""
    left, asked = list(found), []

    def measured(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
        asked.append(seconds)
        return left.pop(0)

    monkeypatch.setattr(module, "measure_matmul", measured)
    return asked


def test_a_busy_moment_does_not_lower_a_kept_peak(
    kept: KeptPeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measuring(monkeypatch, 5e11, 3e11, 6e11, 1e11)
    peaks = [peak_flops(CPU, "fp32", kept) for _ in range(4)]
    assert [peak.flops for peak in peaks] == [5e11, 5e11, 6e11, 6e11]
    assert {peak.source for peak in peaks} == {MATMUL}
    assert asked == [FIRST_S, AGAIN_S, AGAIN_S, AGAIN_S]


def test_a_training_step_raises_the_peak_of_later_runs(
    kept: KeptPeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 5e11, 3e11)
    peak_flops(CPU, "fp32", kept)
    keep_peak(CPU, "fp32", Peak(7e11, STEP), kept)
    keep_peak(CPU, "fp32", Peak(4e11, STEP), kept)
    assert peak_flops(CPU, "fp32", kept) == (7e11, STEP)


def test_a_peak_is_of_one_type_number_of_threads_and_torch(
    kept: KeptPeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 5e11, 9e11, 2e11, 3e11)
    assert peak_flops(CPU, "fp32", kept).flops == 5e11
    assert peak_flops(CPU, "bf16", kept).flops == 9e11
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert peak_flops(CPU, "fp32", kept).flops == 2e11
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert peak_flops(CPU, "fp32", kept).flops == 3e11
    assert "99 threads, fp32, torch 9.9" in peak_key(CPU, "fp32")


def test_a_known_gpu_is_measured_by_its_maker_and_raised_by_a_step(
    kept: KeptPeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    gpu = torch.device("cuda")
    assert peak_flops(gpu, "bf16", kept) == (989e12, "datasheet of H100")
    keep_peak(gpu, "bf16", Peak(500e12, STEP), kept)
    assert peak_flops(gpu, "bf16", kept).flops == 989e12
    keep_peak(gpu, "bf16", Peak(1100e12, STEP), kept)
    assert peak_flops(gpu, "bf16", kept) == (1100e12, STEP)


def test_a_gpu_gets_back_the_memory_of_a_measurement(
    kept: KeptPeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something New")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    measuring(monkeypatch, 5e14)
    assert peak_flops(torch.device("cuda", 0), "bf16", kept) == (5e14, MATMUL)
    assert freed == [True]


def test_the_highest_of_two_processes_stays(kept: KeptPeaks) -> None:
    assert kept.path is not None
    other = KeptPeaks(kept.path)
    kept.raise_to(KEY, Peak(2.0, MATMUL))
    assert other.raise_to(KEY, Peak(1.0, STEP)) == (2.0, MATMUL)
    assert other.raise_to("another key", Peak(1.0, STEP)) == (1.0, STEP)
    assert kept.find(KEY) == (2.0, MATMUL)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"peaks": {}}', b'{"version": 1, "peaks": 3}', b"\xff\xfe",
        100_000 * b"[",
    ],
)  # fmt: skip
def test_a_broken_file_is_said_once_and_written_anew(
    content: bytes, kept: KeptPeaks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.path is not None
    kept.path.parent.mkdir()
    kept.path.write_bytes(content)
    assert kept.find(KEY) is None
    assert kept.raise_to(KEY, Peak(2.0, MATMUL)).flops == 2.0
    assert capsys.readouterr().err == f"{kept.path} holds no peaks: it is written anew\n"
    assert KeptPeaks(kept.path).find(KEY) == (2.0, MATMUL)


@pytest.mark.parametrize(
    "flops", [0, -1.0, "9e11", None, True, float("inf"), float("nan"), 10**400]
)
def test_a_kept_figure_that_is_none_is_not_taken(flops: object, kept: KeptPeaks) -> None:
    assert kept.path is not None
    kept.path.parent.mkdir()
    entry = {"flops": flops, "source": MATMUL}
    kept.path.write_text(json.dumps({"version": 1, "peaks": {KEY: entry, "other": 3}}))
    assert kept.find(KEY) is None
    assert kept.find("other") is None


def test_without_a_place_to_keep_it_a_peak_is_what_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    blocked = KeptPeaks(tmp_path / "file" / "peaks.json")
    assert blocked.raise_to(KEY, Peak(2.0, MATMUL)) == (2.0, MATMUL)
    assert "the peak cannot be kept in" in capsys.readouterr().err
    nowhere = KeptPeaks(None)
    assert nowhere.raise_to(KEY, Peak(2.0, MATMUL)) == (2.0, MATMUL)
    assert nowhere.find(KEY) is None


def test_peaks_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    assert KeptPeaks.of_user().path == tmp_path / "cache" / "peaks.json"


def test_a_user_without_a_home_keeps_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "cache_folder", no_home)
    assert KeptPeaks.of_user().path is None


def test_a_file_that_cannot_be_read_is_said_once_and_done_without(
    kept: KeptPeaks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.path is not None
    kept.path.mkdir(parents=True)  # no file, whoever asks
    assert kept.find(KEY) is None
    assert kept.find(KEY) is None
    said = f"the peaks kept in {kept.path} cannot be read (Is a directory)\n"
    assert capsys.readouterr().err == said
