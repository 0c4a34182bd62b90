"""The worker process of a contender: `python -m bc2.bench.worker`.

The first line of stdin is a `Spec`; each line after it calls a method, see
`bc2.train.worker_process`.
"""

from __future__ import annotations

import importlib
import sys
import time
from contextlib import ExitStack

import torch

from bc2.bench.contenders import Contender, Ours, build_contender
from bc2.bench.spec import Spec
from bc2.train.allocator import keep_freed_memory, use_expandable_segments
from bc2.train.device import DTYPES, pick_precision, take_device
from bc2.train.peak import allocated_peak, device_peak, forget_peak, host_peak
from bc2.train.speed.peak_flops import MATMUL, STEP, Peak, keep_peak, measure_matmul
from bc2.train.worker_process import Answer, serve

#: Steps of a warm-up: at least, at most, and seconds after which no more is begun.
WARMUP = {False: (3, 12, 60.0), True: (5, 25, 240.0)}

#: Seconds of tries each time that the device's peak is measured.
PEAK_S = 0.6

#: Steps have settled when the last three are within this of each other.
SETTLED = 1.1


class Worker:
    """Answers commands about one contender."""

    def __init__(self, spec: Spec, held: ExitStack):
        self.spec = spec = _on_own_device(spec)
        self.device = torch.device(spec.training.device)
        if spec.kind == "hf":
            # The memory of imports is no part of the training: imported before the baseline.
            importlib.import_module("transformers.models.llama.modeling_llama")
        self.baseline = forget_peak()
        if spec.tuned and self.device.type == "cpu":
            keep_freed_memory()
        if spec.tuned:
            use_expandable_segments(self.device)
        self.contender: Contender = build_contender(spec, held)

    def warmup(self) -> Answer:
        """Make steps until their times settle, within limits; compilation happens here."""
        least, most, limit = WARMUP[self.spec.training.compile is True]
        seconds: list[float] = []
        began = time.perf_counter()
        again = True
        while again:
            seconds.append(self._timed()[0])
            done = _settled(seconds) or time.perf_counter() - began > limit
            # All ranks follow the first one's clock: they make steps together.
            again = self.contender.mesh.world.broadcast_object(
                len(seconds) < least or (len(seconds) < most and not done)
            )
        self.contender.clock.take()
        return {"steps": len(seconds), "seconds": seconds}

    def block(self, steps: int, wait: bool = False) -> Answer:
        """A block of steps.

        Args:
            wait: end each part when the device has finished its work. This gives the true
                times of parts, and a slower step on a GPU.
        """
        clock = self.contender.clock
        clock.waits = wait and self.device.type == "cuda"
        clock.take()
        timed = [self._timed() for _ in range(steps)]
        parts = {name: spent / steps for name, spent in clock.take().items()}
        return {"seconds": [s for s, _ in timed], "parts": parts, "loss": timed[-1][1]}

    def memory(self) -> Answer:
        """Peaks since the contender was built; on a CPU, of tensors in one step."""
        peak, gpu = host_peak(), device_peak(self.device)
        if gpu is None:
            # After the peak: the profiler's own records take memory.
            allocated = allocated_peak(self.contender.step, list(self.contender.held_tensors()))
        else:
            allocated = gpu[0]
        return {
            "baseline": self.baseline,
            "peak": peak,
            "allocated": allocated,
            "reserved": gpu[1] if gpu else None,
        }

    def checkpoint(self, steps: int, saves: int) -> Answer:
        """Save checkpoints on all ranks, in the background, while training continues."""
        from bc2.bench.saving import save_while_training

        assert isinstance(self.contender, Ours)
        return save_while_training(self.contender, self.spec, self._timed, steps, saves)

    def threads(self) -> Answer:
        return {"threads": torch.get_num_threads()}

    def _timed(self) -> tuple[float, float]:
        began = time.perf_counter()
        loss = self.contender.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began, loss


def _on_own_device(spec: Spec) -> Spec:
    """With this rank's GPU, where there are several; it becomes the current one."""
    training = spec.training
    several = spec.ranks > 1 and training.device.startswith("cuda")
    device = take_device("cuda" if several else training.device)
    training = training.model_copy(update={"device": str(device)})
    return spec.model_copy(update={"training": training})


class Matmul:
    """Measures the device's peak, apart from the contenders' memory."""

    def __init__(self, spec: Spec):
        self.device = take_device(spec.training.device)
        self.precision = pick_precision(spec.training.precision, self.device)

    def peak(self) -> Answer:
        """What is measured now, and the highest that was ever seen on this machine."""
        flops = measure_matmul(self.device, DTYPES[self.precision], PEAK_S)
        return {"flops": flops, "kept": self._keep(Peak(flops, MATMUL))}

    def keep(self, flops: float) -> Answer:
        """Keep what a step reached, if it is more."""
        return {"kept": self._keep(Peak(flops, STEP))}

    def _keep(self, peak: Peak) -> float:
        return keep_peak(self.device, self.precision, peak).flops


def _settled(seconds: list[float]) -> bool:
    last = seconds[-3:]
    return len(last) == 3 and max(last) <= SETTLED * min(last)


def _build(line: str, held: ExitStack) -> Worker | Matmul:
    spec = Spec.model_validate_json(line)
    return Matmul(spec) if spec.kind == "matmul" else Worker(spec, held)


if __name__ == "__main__":
    sys.exit(serve(_build))
