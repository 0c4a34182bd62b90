"""What the toy of `toy_algorithm` does in a run: its data, objective, stream and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.data.loader import IGNORED, SAMPLE, Batch, pack
from bc2.model.transformer import Transformer
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE
from bc2.train.algorithm import Training
from bc2.train.guard import Guard
from bc2.train.measured import Measured
from bc2.train.models import Models
from bc2.train.objective import Loss, hidden_states
from bc2.train.run import Run
from bc2.train.run_config import RunConfig
from bc2.train.sample_sums import counted_once, sum_by_sample
from bc2.train.schedule import Schedule
from bc2.train.speed.clock import Clock
from bc2.train.speed.step_flops import forward_flops
from bc2.train.stream import BatchStream, StepData, StreamState

#: Ends a text; its other ids are these.
EOS = 2
IDS = range(3, 19)

#: One pair in so many is a tie, which does not count.
TIES = 8


class Texts(NamedTuple):
    """Rows of two random texts, R rows of S tokens."""

    ids: np.ndarray[Any, Any]  # [R, S + 1]
    weight: np.ndarray[Any, Any]  # [R, S], of a token's value in that of its text
    tie: np.ndarray[Any, Any]  # [R]

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int, length: int) -> Texts:
        ids = rng.integers(IDS.start, IDS.stop, (rows, length + 1))
        ids[:, length // 2 - 1], ids[:, -1] = EOS, IGNORED
        weight = rng.uniform(0.5, 1.5, (rows, length)).astype(np.float32)
        return cls(ids, weight, rng.integers(0, TIES, rows) == 0)

    def batch(self, rows: slice) -> Batch:
        """A micro-batch of some rows; who is preferred is not known yet."""
        ids, weight, tie = (each[rows] for each in self)
        count, length = weight.shape
        text = 2 * np.arange(count)[:, None] + (np.arange(length) >= length // 2)
        unknown = np.where(np.repeat(tie, 2), 0.0, 1.0)
        return replace(
            pack(ids, np.zeros(count, np.int64), EOS),
            token_fields={SAMPLE: text, "weight": weight},
            packed_samples=2 * count,
            sample_fields=dict.fromkeys(("side", "margin", "score"), unknown),
            extra_weights={"pairs": count - int(tie.sum())},
        )


def judged(batch: Batch, scores: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Batch:
    """A batch that knows what its judge prefers.

    Args:
        scores: [N], the judge's.
        values: [N], the trained model's.

    Returns:
        With the sample fields ``side``, 1 where the first text of a pair is preferred, -1 where
        it is the second, 0 for a tie; ``margin``, half of how far that is ahead already; and
        ``score``.
    """
    known = batch.sample_fields["side"] != 0
    side = np.where(known, np.where(scores[::2] > scores[1::2], 1.0, -1.0).repeat(2), 0.0)
    margin = side * (values[::2] - values[1::2]).repeat(2) / 2
    return replace(batch, sample_fields={"side": side, "margin": margin, "score": scores})


@dataclass(frozen=True)
class Preference:
    """-log σ of how far the preferred text is ahead beyond its margin."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        side, margin = (of_samples(batch, name, model)[::2] for name in ("side", "margin"))
        first, second = values_of(model, batch, clock).view(-1, 2).unbind(1)
        ahead, counts = side * (first - second), side != 0
        loss = -F.logsigmoid(ahead - margin)[counts].sum()
        right = (ahead > 0)[counts].sum()
        return Loss(counted_once(loss, batch), {"right": counted_once(right, batch)})


@dataclass(frozen=True)
class SquaredError:
    """How far a critic's value of a text is from the judge's score, a token, squared."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        scores = of_samples(batch, "score", model) / batch.max_seqlen
        total = (values_of(model, batch, clock) - scores).square().sum()
        return Loss(counted_once(total, batch), {"error": counted_once(total.detach(), batch)})


def of_samples(batch: Batch, name: str, model: Transformer) -> Tensor:
    """A field of the samples: [N]."""
    return torch.from_numpy(batch.sample_fields[name]).to(model.device)


def values_of(model: Transformer, batch: Batch, clock: Clock | None = None) -> Tensor:
    """The weighted mean of a value model's values over each text: [N]."""
    weight = torch.from_numpy(batch.token_fields["weight"]).flatten().to(model.device)
    values = model.values(hidden_of(model, batch, clock)) * weight
    sums = sum_by_sample(torch.stack([values, weight], dim=1), batch)
    return sums[:, 0] / sums[:, 1]


def scores_of(model: Transformer, batch: Batch) -> Tensor:
    """A language model's log-probability of each text: [N], in nats."""
    labels = torch.from_numpy(batch.labels).flatten().to(model.device)
    found = model.language_head.log_probs(hidden_of(model, batch), labels)
    return sum_by_sample(found.log_probs, batch)


def hidden_of(model: Transformer, batch: Batch, clock: Clock | None = None) -> Tensor:
    return hidden_states(model, batch, clock or Clock())


class ToyStream(BatchStream):
    """Pairs of a generator, judged by the models as they are."""

    def __init__(self, config: RunConfig, models: Models):
        self.config, self.models = config, models
        self.sequences = config.batch_sequences
        self.random = np.random.default_rng(config.seed)
        self.next = 0
        """The sample that is drawn next."""
        self.preferred = np.zeros(2, np.int64)
        """How often the first text and the second was preferred."""

    @contextmanager
    def steps(self, first: int) -> Iterator[Iterator[StepData]]:
        while self.next < first:
            self._draw()  # what a rollback leaves out
        yield self._steps()

    def _steps(self) -> Iterator[StepData]:
        data, micro = self.models.mesh.data, self.config.micro_sequences
        while True:
            first, texts = self.next, self._draw()
            starts = range(data.rank * micro, self.sequences, data.size * micro)
            mine = [self._judged(texts.batch(slice(at, at + micro))) for at in starts]
            sides = np.concatenate([batch.sample_fields["side"][::2] for batch in mine])
            counts = np.array([np.count_nonzero(sides > 0), np.count_nonzero(sides < 0)])
            self.preferred = sum(data.all_gather_object(counts), self.preferred)
            yield StepData(first, self.sequences, mine, ("drawn",), self._flops(mine))

    def _flops(self, batches: Iterable[Batch]) -> float:
        """Of judging some batches, for MFU: the forward passes of both models."""
        models = self.models["judge"].model, self.models.product.model
        return sum(
            forward_flops(model.config, batch.tokens.size, self.config.sequence_length)
            for model in models
            for batch in batches
        )

    def _draw(self) -> Texts:
        """The texts of the next step, of all ranks."""
        self.next += self.sequences
        return Texts.draw(self.random, self.sequences, self.config.sequence_length)

    @torch.no_grad()
    def _judged(self, batch: Batch) -> Batch:
        own = self.models.own_batch(batch)
        scores = self.models["judge"].call_model(scores_of, own)
        values = self.models.product.call_model(values_of, own)
        return judged(batch, scores.cpu().numpy(), values.cpu().numpy())

    def state(self) -> StreamState:
        values = {"next": self.next, "random": self.random.bit_generator.state}
        return StreamState(values, {"preferred": self.preferred})

    def restore(self, state: StreamState | None) -> None:
        assert state is not None, "every checkpoint has one"
        self.next = state.values["next"]
        self.random.bit_generator.state = state.values["random"]
        self.preferred = state.arrays["preferred"]


@dataclass(frozen=True)
class HeldoutPairs:
    """Evaluates the product on the pairs of another seed."""

    config: RunConfig
    models: Models

    def __call__(self) -> Measured:
        other = self.config.model_copy(update={"seed": self.config.seed + 1})
        with ToyStream(other, self.models).steps(0) as steps:
            batches = next(steps).batches
        right = [self.models.product.evaluate(Preference(), batch)["right"] for batch in batches]
        pairs = [batch.weights["pairs"] for batch in batches]
        each = self.models.mesh.data.all_gather_object((sum(right), sum(pairs)))
        share = sum(one for one, _ in each) / sum(of for _, of in each)
        return Measured({"heldout_right": share}, f"{share:.1%} of held-out pairs ordered right")


class ToyRun(Training):
    """The toy in one run."""

    def __init__(self, run: Run):
        self.config, self.metrics = run.config, run.algorithm.metrics
        self.schedule = Schedule.of(run.config, epoch_tokens=run.config.step_tokens)
        self.tokenizer = run.inputs.one("tokenizer").file(TOKENIZER_FILE)

    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> ToyStream:
        return ToyStream(config, models)

    def guard(self) -> Guard[Any]:
        return Guard(self.config.guard, self.metrics.guarded)

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> HeldoutPairs:
        return HeldoutPairs(config, models)

    def extent(self) -> str:
        return f"{self.config.batch_sequences:,} pairs"
