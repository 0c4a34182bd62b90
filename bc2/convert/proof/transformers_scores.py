"""What transformers' sequence classifier says of a folder, in fp32; in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from bc2.convert.proof.consumer import Padding
from bc2.convert.proof.transformers_model import TransformersTexts, load_checked

#: Texts of a batch.
_BATCH = 8

#: Its own annotations say less than it does.
_library: Any = transformers


class TransformersScores(TransformersTexts):
    """A `ScoringModel`, and how transformers reads texts and conversations.

    Args:
        folder: what was written.
        remote_code: whether the code that lies in it is run.

    Raises:
        RunFailed: see `load_checked`.
    """

    def __init__(self, folder: str, *, remote_code: bool):
        super().__init__(folder, remote_code=remote_code)
        auto = _library.AutoModelForSequenceClassification
        self._model = load_checked(auto, self._tokenizer, folder, remote_code=remote_code)

    @torch.no_grad()
    def scores(self, texts: Sequence[Sequence[int]], padding: Padding) -> list[float]:
        self._tokenizer.padding_side = padding
        found: list[float] = []
        for first in range(0, len(texts), _BATCH):
            rows = {"input_ids": [list(ids) for ids in texts[first : first + _BATCH]]}
            batch = self._tokenizer.pad(rows, return_tensors="pt")
            logits = self._model(**batch).logits
            found += logits[:, 0].double().tolist()
        return found
