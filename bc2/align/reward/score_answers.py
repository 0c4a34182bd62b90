"""The scores of answers by a reward model, packed into passes of many tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bc2.align.reward.reward_objective import answer_scores
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.sample import Sample
from bc2.model.transformer import Transformer
from bc2.registry import Artifact


class ScoreScale(NamedTuple):
    """Mean and standard deviation of a model's scores, of the answers that its run held out."""

    centre: float
    scale: float

    @classmethod
    def of(cls, artifact: Artifact) -> ScoreScale | None:
        """What is kept with a model; None: nothing is, as where nothing was held out."""
        facts = artifact.manifest.facts
        centre, scale = facts.get("score_centre"), facts.get("score_scale")
        if not isinstance(centre, (int, float)) or not isinstance(scale, (int, float)):
            return None
        return cls(float(centre), float(scale)) if scale > 0 else None

    def __call__(self, score: float) -> float:
        """The standard score: how many standard deviations it is above the mean."""
        return (score - self.centre) / self.scale


def batch_tokens(device: torch.device) -> int:
    """Tokens of a pass, if no answer has more."""
    return 2048 if device.type == "cpu" else 32768


def score_batches(
    model: Transformer, samples: Iterable[Sample], budget: int
) -> Iterator[npt.NDArray[np.float64]]:
    """The scores of some samples after another, in their order: [n] of each pass.

    A score is that of the sample alone, whatever else is in its pass.

    Args:
        samples: see `bc2.align.reward.score_reader.ReadAnswer.sample`.
        budget: tokens of a pass; a longer sample has one of its own.
    """
    some: list[Sample] = []
    tokens = 0
    for sample in samples:
        if some and tokens + len(sample.tokens) > budget:
            yield score_pass(model, some)
            some, tokens = [], 0
        some.append(sample)
        tokens += len(sample.tokens)
    if some:
        yield score_pass(model, some)


@torch.inference_mode()
def score_pass(model: Transformer, samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """The scores of some samples in one pass: [N]."""
    total = sum(len(sample.tokens) for sample in samples)
    found: npt.NDArray[np.float64] = (
        answer_scores(model, make_batch([samples], total, pad_id=0)).cpu().numpy()
    )
    return found
