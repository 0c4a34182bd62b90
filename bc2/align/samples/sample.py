"""A conversation as a model is trained on it: tokens, and what each position is to say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bc2.tokenizer.chat import IGNORED, Rendered


@dataclass(frozen=True)
class Sample:
    """Shapes: L tokens."""

    tokens: npt.NDArray[np.int32]
    """[L]"""
    labels: npt.NDArray[np.int32]
    """[L], what each position is to say, or -100: that is what is learnt at the next place."""
    weights: npt.NDArray[np.float32]
    """[L], how much each label counts; 0 where there is none."""

    @property
    def trained(self) -> int:
        """Labels that are not -100."""
        return int(np.count_nonzero(self.labels != IGNORED))


def sample_of(rendered: Rendered) -> Sample:
    """The sample of a rendered conversation, up to its last label: nothing learns from the rest."""
    labels = np.asarray(rendered.labels[1:], np.int32)
    learnt = np.flatnonzero(labels != IGNORED)
    length = int(learnt[-1]) + 1 if len(learnt) else len(labels)
    weights = np.asarray(rendered.weights[1 : length + 1], np.float32)
    labels = labels[:length]
    tokens = np.asarray(rendered.ids[:length], np.int32)
    return Sample(tokens, labels, np.where(labels == IGNORED, np.float32(0), weights))
