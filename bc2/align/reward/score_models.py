"""Answers scored by several reward models, each by itself; all score the same ones.

Shapes: M models, N answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bc2.align.reward.score_answers import batch_tokens, score_batches
from bc2.align.reward.score_data import ScoredData
from bc2.align.reward.score_reader import AnswerReader, ReadAnswer, Unfit
from bc2.align.samples.sample import Sample
from bc2.console import progress
from bc2.errors import DataError, RunFailed
from bc2.generate.load import open_model
from bc2.registry import Artifact

#: Answers that an error names, of those it is about.
_NAMED = 5

WhatToDo = Literal["stop", "drop"]


@dataclass(frozen=True)
class Scored:
    """What some models say of the same answers."""

    scores: npt.NDArray[np.float64]
    """[M, N]; NaN for an answer that is left out."""
    lengths: npt.NDArray[np.int32]
    """[M, N] tokens of the answers as each model reads them; 0 for one that is left out."""
    left_out: Mapping[str, int]
    """Answers that some model cannot score, by the first reason."""

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[N], which answers have scores."""
        kept: npt.NDArray[np.bool_] = np.all(~np.isnan(self.scores), axis=0)
        return kept


def score_models(
    models: Mapping[str, Artifact], data: ScoredData, device: torch.device, dtype: torch.dtype,
    *, too_long: WhatToDo = "stop", faulty: WhatToDo = "stop",
) -> Scored:  # fmt: skip
    """Score answers by models, one after the other. All is read first, without their weights.

    Args:
        models: reward models, by the names that errors call them by.
        too_long, faulty: what to do about answers that a model cannot read to their end, and
            about those that it cannot be given as it was trained to read them.

    Raises:
        DataError: an answer is unfit and that is to stop it, or none is left.
        RunFailed: a score is not a number.
    """
    readers = {name: AnswerReader.of(artifact) for name, artifact in models.items()}
    lengths = np.zeros((len(models), data.count), np.int32)
    unfit: dict[int, Unfit] = {}
    for place, (name, reader) in enumerate(readers.items()):
        lengths[place], wrong = _lengths(reader, data)
        _check(name, data, wrong, too_long, faulty)
        unfit = {**wrong, **unfit}
    kept = np.ones(data.count, bool)
    kept[list(unfit)] = False
    if not kept.any():
        some = next(iter(unfit.values()), None)
        why = f": {some.why}" if some else ""
        raise DataError(f"no answer is left to score{why}", where=data.name)
    scores = np.full(lengths.shape, np.nan)
    for place, (name, artifact) in enumerate(models.items()):
        with open_model(artifact, device, dtype) as loaded:
            samples = _samples(readers[name], data, kept)
            with progress(f"scoring by {name}", int(kept.sum()), "answers") as bar:
                found = []
                for some_scores in score_batches(loaded.model, samples, batch_tokens(device)):
                    found.append(some_scores)
                    bar(len(some_scores))
        scores[place, kept] = _finite(np.concatenate(found), name)
    counts = Counter(one.code for one in unfit.values())
    return Scored(scores, np.where(kept, lengths, 0), dict(counts.most_common()))


def _lengths(
    reader: AnswerReader, data: ScoredData
) -> tuple[npt.NDArray[np.int32], dict[int, Unfit]]:
    """[N] tokens of the answers, and those that are unfit by their places."""
    lengths, wrong = np.zeros(data.count, np.int32), {}
    for place, answer in enumerate(data.read()):
        read = reader.read(answer.messages)
        if isinstance(read, Unfit):
            wrong[place] = read
        else:
            lengths[place] = read.tokens
    return lengths, wrong


def _samples(
    reader: AnswerReader, data: ScoredData, kept: npt.NDArray[np.bool_]
) -> Iterator[Sample]:
    for place, answer in enumerate(data.read()):
        if kept[place]:
            read = reader.read(answer.messages)
            assert isinstance(read, ReadAnswer)
            yield read.sample


def _check(
    name: str, data: ScoredData, wrong: Mapping[int, Unfit], too_long: WhatToDo, faulty: WhatToDo
) -> None:
    long = [place for place, one in wrong.items() if one.code == "too_long"]
    bad = [place for place in wrong if place not in set(long)]
    if bad and faulty == "stop":
        raise DataError(
            f"{len(bad):,} of {data.count:,} answers cannot be scored by {name}",
            where=_places(data, bad, wrong),
            todo="mend them, or leave them out: --faulty drop",
        )
    if long and too_long == "stop":
        raise DataError(
            f"{len(long):,} of {data.count:,} answers are too long for {name}",
            where=_places(data, long, wrong),
            todo="leave them out: --too-long drop",
        )


def _places(data: ScoredData, some: Sequence[int], wrong: Mapping[int, Unfit]) -> str:
    named = [
        f"{data.answers.at(data.split, place).where}: {wrong[place].why}" for place in some[:_NAMED]
    ]
    more = f"; and {len(some) - _NAMED:,} more" if len(some) > _NAMED else ""
    return "; ".join(named) + more


def _finite(scores: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    if not np.isfinite(scores).all():
        raise RunFailed(
            f"{np.count_nonzero(~np.isfinite(scores)):,} of {len(scores):,} scores by {name} are "
            "not numbers",
            todo="try --precision fp32, or another model",
        )
    return scores
