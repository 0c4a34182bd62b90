"""The worker process of a contender: `python -m bc2.bench.generation.worker`.

The first line of stdin is a `Job`; each line after it calls a method, see
`bc2.train.worker_process`.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from bc2.bench.generation.job import Job
from bc2.bench.generation.outcome import Outcome, Pair
from bc2.bench.generation.work import Work
from bc2.parallel.own_device import make_current
from bc2.train.allocator import keep_freed_memory
from bc2.train.peak import device_peak, forget_peak, host_peak
from bc2.train.worker_process import Answer, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bc2.bench.generation.ours import Ours

#: Prompts that are continued before anything is timed, and tokens of each answer.
WARMUP_PROMPTS, WARMUP_TOKENS = 8, 8


class Decoder(Protocol):
    """Whoever continues prompts."""

    def decode(self, pairs: Sequence[Pair], size: int) -> Outcome: ...


class Worker:
    """Answers commands about one contender."""

    def __init__(self, job: Job):
        self.job = job
        self.device = torch.device(job.device)
        make_current(self.device)
        self.work = Work.model_validate_json(Path(job.work).read_text(encoding="utf-8"))
        if job.kind != "bc2":
            # The memory of imports is no part of generation: imported before the baseline.
            importlib.import_module("transformers.models.llama.modeling_llama")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.baseline = forget_peak()
        self.contender = _build(job)

    def decode(self, count: int | None = None, size: int | None = None) -> Answer:
        """Continue the first `count` prompts; all, and in the job's own size, if not given."""
        pairs = self.work.pairs[:count]
        return self._decode(pairs, self.job.size if size is None else size).as_json()

    def warmup(self) -> Answer:
        """Short answers, so that what happens once only has happened."""
        pairs = [(prompt, WARMUP_TOKENS) for prompt in self.work.prompts[:WARMUP_PROMPTS]]
        self._decode(pairs, WARMUP_PROMPTS)
        return {}

    def settle(self, count: int) -> Answer:
        return self._ours.settle(self.work.pairs[:count])

    def score(self, share: bool) -> Answer:
        return self._ours.score(self.work.questions, share)

    def sampling(self, way: str) -> Answer:
        return self._ours.sampling(way)

    def family(self, n: int) -> Answer:
        return self._ours.family(n)

    def counters(self) -> Answer:
        return self._ours.counters()

    def memory(self) -> Answer:
        """Peaks since the contender was built."""
        gpu = device_peak(self.device)
        return {
            "baseline": self.baseline,
            "peak": host_peak(),
            "reserved": gpu[1] if gpu else None,
        }

    def threads(self) -> Answer:
        return {"threads": torch.get_num_threads()}

    def _decode(self, pairs: Sequence[Pair], size: int) -> Outcome:
        with torch.inference_mode():
            return self.contender.decode(pairs, size)

    @property
    def _ours(self) -> Ours:
        from bc2.bench.generation.ours import Ours

        assert isinstance(self.contender, Ours)
        return self.contender


def _build(job: Job) -> Decoder:
    if job.kind == "bc2":
        from bc2.bench.generation.ours import Ours

        return Ours(job)
    from bc2.bench.generation.peers import ContinuousBatches, StaticBatches

    if job.kind == "hf-continuous":
        return ContinuousBatches(job)
    return StaticBatches(job, by_answer=job.kind == "hf-sorted")


def _serve(line: str, _held: ExitStack) -> Worker:
    return Worker(Job.model_validate_json(line))


if __name__ == "__main__":
    sys.exit(serve(_serve))
