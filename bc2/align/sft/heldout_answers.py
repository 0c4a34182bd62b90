"""What fine-tuning measures on held-out conversations: the loss of answers, and answers."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bc2.align.samples.packed_batch import WEIGHT
from bc2.align.samples.written_answers import AnswerWriter
from bc2.align.sft.packed_conversations import PackedSamples
from bc2.data.loader import Batch, read_ahead
from bc2.errors import RunFailed
from bc2.model.transfer import to_device
from bc2.model.transformer import Transformer
from bc2.train.engines.base import Engine
from bc2.train.measured import Measured
from bc2.train.objective import Loss, hidden_states
from bc2.train.speed.clock import Clock
from bc2.train.stream import with_timeout

#: Batches read ahead.
_AHEAD = 4


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over held-out labels: an objective that is only evaluated."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        device = model.device
        labels = to_device(torch.from_numpy(batch.labels), device).flatten()
        shares = to_device(torch.from_numpy(batch.token_fields[WEIGHT]), device).flatten()
        hidden = hidden_states(model, batch, clock or Clock())
        found = model.language_head.log_probs(hidden, labels)
        nats = -found.log_probs.double()
        by_sample, right = (nats * shares).sum(), found.greedy.double().sum()
        return Loss(nats.sum(), {"by_sample": by_sample, "right": right})


@dataclass(frozen=True)
class HeldoutAnswers:
    """Evaluations of the model that an engine trains; a function of its weights alone."""

    engine: Engine
    rows: PackedSamples | None
    """Held-out conversations, each label weighted by one over those of its sample; None: the loss
    is not measured."""
    micro_batch: int
    answers: AnswerWriter
    timeout_s: float
    """The longest wait for a batch."""
    check: Callable[[], None]
    """Called between batches and tokens; if it raises, the evaluation is abandoned."""

    def __call__(self) -> Measured:
        """Loss and accuracy of the labels, and answers."""
        assert self.rows is not None
        with read_ahead(self._batches(), _AHEAD) as ready:
            facts = self._facts(with_timeout(ready, self.timeout_s, self.check))
        broken = not math.isfinite(facts["heldout_loss"])
        text = f"held-out loss {facts['heldout_loss']:.4f} nats/token, "
        text += f"{facts['heldout_accuracy']:.1%} of tokens the likeliest"
        answers = [] if broken else self.answers(self.engine, self.check)
        samples = [{"prompt": asked, "text": text} for asked, text, _ in answers]
        return Measured(facts, text, samples, {"heldout_sha256": self._digest()})

    def _batches(self) -> Iterator[Batch]:
        assert self.rows is not None
        numbers = range(self.rows.first_row(1))
        for at in range(0, len(numbers), self.micro_batch):
            yield self.rows.batch(numbers[at : at + self.micro_batch])

    def _facts(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Every rank is given all batches; data-parallel ranks take turns with them."""
        data = self.engine.mesh.data
        mine = np.zeros(5)
        while turn := list(itertools.islice(batches, data.size)):
            # Ranks that share weights must all run the model: one without a batch repeats the last.
            own = data.rank < len(turn)
            batch = turn[data.rank if own else -1]
            sums = self.engine.evaluate(HeldoutSums(), batch)
            if own:
                counts = batch.num_labels, batch.num_samples
                mine += [sums["loss"], sums["by_sample"], sums["right"], *counts]
        every = np.stack(data.all_gather_object(mine)).sum(axis=0)
        nats, by_sample, right, tokens, samples = every.tolist()
        if not tokens:
            raise RunFailed("held-out conversations have no labels", todo="set eval_samples = 0")
        return {
            "heldout_loss": float(nats / tokens),
            "heldout_samples_loss": float(by_sample / samples),
            "heldout_accuracy": float(right / tokens),
            "heldout_tokens": int(tokens),
            "heldout_samples": int(samples),
        }

    def _digest(self) -> str:
        """Of the held-out samples: losses compare where it is equal."""
        assert self.rows is not None
        found = hashlib.sha256()
        for number in self.rows.entries.tolist():
            sample = self.rows.samples.sample(number)
            found.update(np.stack([sample.tokens, sample.labels]).astype("<i4").tobytes())
        return found.hexdigest()
