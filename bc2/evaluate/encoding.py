"""The tokens of prompts and of their answers, as lm-eval's `TemplateLM` encodes them, but faster.

lm-eval encodes the context once more for each answer. Here it is encoded once, and what many
prompts begin with, such as the worked examples of a subject, is encoded once for all of them.
Both need places where the tokenizer lets a text be cut (`bc2.tokenizer.boundaries`); without such
places everything is encoded in full, with the same result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from bc2.errors import DataError
from bc2.tokenizer.boundaries import Boundaries
from bc2.tokenizer.tokenizer import Tokenizer

#: Beginnings of prompts that are kept, each with its tokens.
KEPT_BEGINNINGS = 16

#: A beginning is kept if it is longer than a kept one by this many characters.
_WORTH_KEEPING = 64

#: Texts of up to so many characters are remembered with their tokens: " A", " B", ...
_SHORT = 64
_SHORT_TEXTS = 4096


class PromptEncoder:
    """Encodes the prompts of a task, best in the task's own order; for one thread.

    Args:
        prefix_id: what stands for an empty context, lm-eval's `prefix_token_id`. Other contexts
            begin with the tokenizer's `begin_ids`, as in lm-eval's `hf` model by default.
    """

    def __init__(self, tokenizer: Tokenizer, *, prefix_id: int):
        self._tokenizer = tokenizer
        self._prefix_id = prefix_id
        self._begin = list(tokenizer.begin_ids)
        self._boundaries = Boundaries(tokenizer)
        self._short = lru_cache(_SHORT_TEXTS)(tokenizer.encode)
        self._beginnings: OrderedDict[str, list[int]] = OrderedDict()
        self._last = ""

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt: `Tokenizer.encode_whole`."""
        return self._begin + self.text_ids(text)

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text without what it begins with: `Tokenizer.encode`."""
        if not self._boundaries.exist:
            return self._tokenizer.encode(text)
        beginning, ids = self._beginning(text)
        return ids + self._encode(text[len(beginning) :])

    def question_tokens(self, text: str) -> int:
        """How many tokens a question has without shots."""
        return len(self.encode(text))

    def pair(
        self, context: str, continuations: Sequence[str], *, where: str | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """The ids of a context, and of each of its continuations in that context.

        As in `TemplateLM._encode_pair`, white space at the end of the context belongs to the
        continuations, and these are the tokens of the whole text after as many as the context
        alone has. As in `TemplateLM.loglikelihood`, an empty context is `prefix_id`.

        Args:
            where: names the sample in errors.

        Raises:
            DataError: the context is white space alone, or a continuation has no tokens.
        """
        if context:
            kept = context.rstrip()
            moved = context[len(kept) :]
            ids = self.text_ids(kept)
            context_ids = self._begin + ids
            if not context_ids:
                raise DataError(f"the context {context!r} has no tokens", where=where)
            answers = [self._after(kept, ids, moved + text) for text in continuations]
        else:
            context_ids = [self._prefix_id]
            answers = [self._after_nothing(text) for text in continuations]
        for text, ids in zip(continuations, answers, strict=True):
            if not ids:
                raise DataError(
                    f"the continuation {text!r} has no tokens after its context"
                    f" (which ends with {context[-20:]!r})",
                    where=where,
                )
        return context_ids, answers

    def _after_nothing(self, text: str) -> list[int]:
        ids = self._encode(text)
        return ids[1:] if ids[:1] == [self._prefix_id] else ids

    def _after(self, context: str, context_ids: list[int], text: str) -> list[int]:
        """The tokens of ``context + text`` after those that the context alone has.

        What texts begin with is in neither.

        The tokens before a safe place are the same in both, so only what is after it is encoded.
        """
        if not self._boundaries.exist:
            return self._tokenizer.encode(context + text)[len(context_ids) :]
        place = len(context)
        if not self._boundaries.is_safe(context + text[:1], place):
            place = self._boundaries.last(context, place - 1)
        tail = context[place:]
        return self._encode(tail + text)[len(self._encode(tail)) :]

    def _encode(self, text: str) -> list[int]:
        if len(text) > _SHORT:
            return self._tokenizer.encode(text)
        return self._short(text).copy()

    def _beginning(self, text: str) -> tuple[str, list[int]]:
        """The longest kept beginning of a text, after keeping what it shares with the last one."""
        known = self._longest_kept(text)
        shared = self._shared_with_last(text)
        self._last = text
        if shared >= len(known) + _WORTH_KEEPING:
            ids = self._beginnings.get(known, []) + self._encode(text[len(known) : shared])
            known = text[:shared]
            self._beginnings[known] = ids
            if len(self._beginnings) > KEPT_BEGINNINGS:
                self._beginnings.popitem(last=False)
        return known, self._beginnings.get(known, [])

    def _longest_kept(self, text: str) -> str:
        """The longest kept beginning after which this text can be cut, or nothing."""
        fitting = [
            beginning
            for beginning in self._beginnings
            if text.startswith(beginning) and self._boundaries.is_safe(text, len(beginning))
        ]
        if not fitting:
            return ""
        longest = max(fitting, key=len)
        self._beginnings.move_to_end(longest)
        return longest

    def _shared_with_last(self, text: str) -> int:
        """A safe place before which this text is the same as the last one.

        In texts of several lines it is not after the beginning of a line: the last line that is
        partly the same differs from text to text.
        """
        length = _common_length(text, self._last)
        line = text.rfind("\n", 0, length) + 1
        return self._boundaries.last(text, line or length)


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token before a text without context: what texts begin with, as in lm-eval's `hf` model.

    Else the end of the document before it. It is -1 for a tokenizer that has neither an end nor a
    beginning of text.
    """
    if tokenizer.begin_ids:
        return tokenizer.begin_ids[-1]
    return tokenizer.eos_id if tokenizer.eos_id >= 0 else tokenizer.bos_id


def _common_length(first: str, second: str) -> int:
    """Characters at the beginning of two texts that are the same."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
