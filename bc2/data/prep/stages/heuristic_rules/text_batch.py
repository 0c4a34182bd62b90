"""What heuristic rules measure: prose, and the code, tables and headings beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.prep.heuristics_settings import FormRules
from bc2.data.prep.text.boilerplate_phrases import BOILERPLATE, LOREM_IPSUM
from bc2.data.prep.text.document_statistics import Bools, DocumentStatistics, Floats, Int64
from bc2.data.prep.text.sentences import code_of, content_of

#: With more of its characters in lines of filler text a document is not finished; with fewer it
#: shows such text as an example.
_MOST_FILLER = 0.25


class TextBatch:
    """What rules measure: the prose of a batch of texts; D documents.

    Args:
        texts: the prose of each.
        wholes: each with its code, tables and headings; equal to `texts` by default.
    """

    def __init__(self, texts: Sequence[str], rules: FormRules, wholes: Sequence[str] = ()):
        self.texts = texts
        self.rules = rules
        self.wholes = wholes or texts
        self.form = DocumentStatistics(texts)

    @cached_property
    def little_prose(self) -> Bools:
        """[D] which texts have fewer words of prose than a document must have, or none."""
        return np.asarray(self.form.words < max(1, self.rules.min_words))

    @cached_property
    def all_words(self) -> Int64:
        """[D] the number of words, those of code, tables and headings included."""
        words = self.form.words.copy()
        for at in self.mostly_blocks:
            words[at] += DocumentStatistics([content_of(self.wholes[at])]).words[0]
        return words

    @property
    def mostly_blocks(self) -> list[int]:
        """Indices of the texts with little prose and something else."""
        some = np.flatnonzero(self.little_prose).tolist()
        return [at for at in some if self.wholes[at] is not self.texts[at]]

    @cached_property
    def _shares(self) -> dict[int, float]:
        return {}

    def prose_share(self, at: int) -> float:
        """The share of a text's characters that are prose and not code, white space aside."""
        if at not in self._shares:
            whole, prose = self.wholes[at], int(self.form.solid[at])
            code = 0 if whole is self.texts[at] else len("".join(code_of(whole).split()))
            self._shares[at] = prose / max(prose + code, 1)
        return self._shares[at]

    def in_whole(self, values: Int64 | Floats, failed: Bools) -> Floats:
        """[D] shares of the prose as shares of prose and code, for the texts that failed a limit.

        Where examples of code are most of a text, the few words between them may repeat.
        """
        scaled = values.astype(np.float64)
        for at in np.flatnonzero(failed).tolist():
            scaled[at] *= self.prose_share(at)
        return scaled

    @cached_property
    def has_phrase(self) -> Bools:
        """[D] which texts hold a boilerplate phrase or filler text."""
        texts = pa.array(self.texts, pa.large_string())
        pattern = f"{BOILERPLATE}|{LOREM_IPSUM}"
        found = pc.match_substring_regex(texts, pattern, ignore_case=True)
        return np.asarray(found.to_numpy(zero_copy_only=False))

    def filler(self) -> Bools:
        """[D] which texts have the filler text "lorem ipsum" in much of their lines."""
        found = np.zeros(len(self.texts), bool)
        for at in np.flatnonzero(self.has_phrase).tolist():
            lines = [line.strip().lower() for line in self.texts[at].split("\n")]
            filled = sum(len(line) for line in lines if LOREM_IPSUM in line)
            found[at] = filled > _MOST_FILLER * sum(map(len, lines))
        return found
