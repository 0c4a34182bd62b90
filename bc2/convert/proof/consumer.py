"""What a program says of a model: the same four questions for ours and for everyone else's.

Shapes: T tokens, V rows of the model's head.

A consumer holds a whole model in memory, so that one is closed before the next is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

#: A role and a content.
Said = dict[str, str]

#: The side of a batch's rows that is filled.
Padding = Literal["left", "right"]


class ComputedModel(Protocol):
    """A program that has loaded a model. It computes in fp32, and is asked by one thread."""

    @property
    def name(self) -> str:
        """Such as ``transformers`` or ``llama.cpp``."""

    @property
    def version(self) -> str:
        """Of the program."""

    def log_probs(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Natural log-probabilities of the next token after each token of a text.

        Nothing is put before `ids`. Row t is what the model says having read ids[: t + 1].

        Returns:
            [T, V]: all the vocabulary, at temperature 1. It may be a mapped file.

        Raises:
            RunFailed: the program failed, with the end of what it said.
        """

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation of a prompt, as the program's own generation gives it.

        Nothing is put before `ids`. No token ends it if the program can be told so; of one that
        cannot, fewer than `count` tokens come, without the token that ended it.
        """


class ScoringModel(Protocol):
    """A program that has loaded a model with a scalar head, and computes in fp32."""

    @property
    def name(self) -> str:
        """See `ComputedModel`."""

    @property
    def version(self) -> str:
        """Of the program."""

    def scores(self, texts: Sequence[Sequence[int]], padding: Padding) -> list[float]:
        """The score of each text, at its last token.

        Args:
            texts: ids, of which nothing is put before or behind.
            padding: the side on which a program that computes batches fills them.
        """


class Consumer(ComputedModel, Protocol):
    """Such a program, and how it reads texts and conversations."""

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of texts as the program by itself makes them, without beginning and end.

        None for a text that it refuses, such as one with a lone surrogate.
        """

    def chat(self, messages: Sequence[Said], *, generation_prompt: bool) -> list[int] | None:
        """The ids of a conversation by the program's own template; None if it has none.

        They are those that the program would feed to the model, a beginning included.
        """
