"""Training steps on micro-batches of some size, to measure the memory they take.

`python -m bc2.train.micro_batch_trial`, see `bc2.train.worker_process`: a process of its own,
so that running out of memory is an answer, and its memory is free again afterwards.
"""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch

from bc2.errors import out_of_memory
from bc2.parallel.mesh import Mesh
from bc2.train.allocator import use_expandable_segments
from bc2.train.device import take_device
from bc2.train.models import make_models
from bc2.train.peak import forget_peak, host_peak
from bc2.train.worker_process import Answer, serve

if TYPE_CHECKING:
    from bc2.train.training_settings import TrainingSettings


class Trial:
    """An engine that makes steps on micro-batches of any number of sequences."""

    def __init__(self, settings: TrainingSettings, margin: float):
        # Without compilation, which takes minutes: eager layers keep at least as much.
        self.settings = settings.with_training(compile=False)
        training = self.settings.training
        use_expandable_segments(torch.device(training.device))
        self.device = take_device(training.device)
        self.baseline = forget_peak()
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            torch.cuda.set_per_process_memory_fraction((1 - margin) * free / total, self.device)
        models = make_models(self.settings.models, training, None, Mesh())
        algorithm = self.settings.algorithm
        self.trained = {
            role: (engine, algorithm.objective(role, training, models))
            for role, engine in models.trained.items()
        }

    def fits(self, micro_batch: int) -> Answer:
        """Make two steps; the second has the optimizer's state beside it.

        Returns:
            ``fits``; and ``bytes``, the peak since this process had only its imports: on the
            host for a CPU, where an answer is never False.
        """
        if self.device.type == "cpu":
            self._steps(micro_batch)
            return {"fits": True, "bytes": host_peak() - self.baseline}
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            self._steps(micro_batch)
            fits = True
        except (RuntimeError, MemoryError) as error:
            # A library's own memory, of cuBLAS or cuDNN, ends in other errors than torch's.
            if not out_of_memory(error):
                raise
            fits = False
        for engine, _ in self.trained.values():
            engine.discard()
        gc.collect()
        taken = torch.cuda.max_memory_reserved(self.device)
        torch.cuda.empty_cache()
        return {"fits": fits, "bytes": taken}

    def _steps(self, micro_batch: int) -> None:
        algorithm, rng = self.settings.algorithm, np.random.default_rng(0)
        batch = algorithm.example(self.settings, micro_batch, rng)
        count = min(2, self.settings.training.batch_sequences // micro_batch)
        for _ in range(2):
            divisor = count * batch.weights[algorithm.divisor]
            for engine, objective in self.trained.values():
                engine.accumulate([batch] * count, objective, divisor=divisor)
            for engine, _ in self.trained.values():
                engine.update(0.0, norm=engine.gradient_norm(), clip_norm=1.0)


def _build(line: str, held: ExitStack) -> Trial:
    from bc2.train.trial_spec import TrialSpec

    spec = TrialSpec.model_validate_json(line)
    return Trial(spec.settings, spec.margin)


if __name__ == "__main__":
    sys.exit(serve(_build))
