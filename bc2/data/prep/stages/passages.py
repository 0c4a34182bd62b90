"""Cut paragraphs and sentences that occur earlier in the corpus.

A passage is a paragraph or a sentence. Passages are compared by a 64-bit hash (XXH3) of a
normalised form. Among n passages about n^2 / 2^65 pairs collide: 0.03 pairs among 10^9 passages, 3
among 10^10. A collision costs one passage of text, so matches are not verified.

Cuts are decided in two rounds. In the first, every copy except the first in the corpus counts as
lost, and a document that would lose too much is dropped. In the second, the first copy is chosen
again, among the documents that stay. So a passage that is cut always remains in another document
after this stage, or earlier in the same one. Only text that was in dropped documents alone is lost.

A later stage may drop the document that holds the first copy: a near-duplicate, unsafe text, text
of a benchmark. What was cut elsewhere is then lost with it. It cannot be put back, for the text
around it has been compared, scored and masked without it since; but it is counted: `settle` keeps
the place of each first copy, and after the last stage `review` looks which of them are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.language_tags import is_code
from bc2.data.prep.settings import PassagesSettings
from bc2.data.prep.stages.base import (
    Aftermath,
    Outcome,
    PrepStage,
    RemovedRow,
    WorkingSet,
    removed,
)
from bc2.data.prep.stages.deduplication.cut_decision import (
    DOCUMENT,
    PARAGRAPH,
    SENTENCE,
    RepeatedPassages,
    decide,
)
from bc2.data.prep.stages.deduplication.lost_passages import lost_with_holder
from bc2.data.prep.stages.deduplication.repeated_passages import PASSAGES, repeated
from bc2.data.prep.text.markup.unmarked_code import is_unmarked_code
from bc2.data.prep.text.piece_scores import SCORES, scores_left
from bc2.data.prep.text.sentences import Paragraph, code_paragraphs, divide, joined


class PassagesStage(PrepStage):
    """Cuts the paragraphs and sentences that occur earlier in the corpus.

    Earlier is defined by `pos`, then by the place in the text. The columns ``paragraph_scores``
    and ``sentence_scores`` (lists with a number for each piece) lose the numbers of cut pieces.
    They become null if the remaining text does not split into exactly the pieces that were kept.

    Memory of `settle`: that of `repeated_passages.repeated`, then about 100 bytes for each passage
    that occurs several times.
    """

    name: ClassVar[str] = "passages"
    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = (
        "duplicate_paragraph",
        "duplicate_sentence",
        "mostly_duplicate",
    )
    needs_all: ClassVar[bool] = True

    def __init__(self, settings: PassagesSettings):
        self.settings = settings

    def keys(self, table: pa.Table) -> pa.Table:
        """One row for each passage that may be cut, in the order of `pos`."""
        found: list[tuple[int, ...]] = []
        counts, sizes = [], []
        for text, lang in zip(table["text"].to_pylist(), table["lang"].to_pylist(), strict=True):
            before = len(found)
            if self.settings.code or not is_code(lang):
                found += self._passages(text, lang)
            counts.append(len(found) - before)
            sizes.append((len(text), len(text.encode())))
        passages = list(zip(*found, strict=True)) or [()] * 6
        lengths = np.repeat(np.array(sizes, np.int64).reshape(-1, 2), counts, axis=0)
        pos = np.repeat(table["pos"].to_numpy(), counts)
        columns = [pos, *passages, lengths[:, 0], lengths[:, 1]]
        return pa.table([pa.array(column) for column in columns], names=PASSAGES.names).cast(
            PASSAGES
        )

    def _passages(self, text: str, lang: str | None) -> Iterator[tuple[int, ...]]:
        """hash, kind, index, inside, characters and bytes of each passage that is long enough.

        See `repeated_passages.PASSAGES`.
        """
        from xxhash import xxh3_64_intdigest

        code = is_code(lang)
        form = _code_form if code else _form
        for kind, index, inside, piece in self._pieces(text, code):
            limit = self._limits[kind]
            if 4 * len(piece) < limit:  # a character has at most 4 bytes
                continue
            shape = form(piece).encode()
            if len(shape) >= limit and (code or not _is_example(piece)):
                digest = xxh3_64_intdigest(shape, seed=kind) - (1 << 63)
                yield digest, kind, index, inside, len(piece), len(piece.encode())

    @property
    def _limits(self) -> tuple[int, int]:
        """Fewest bytes of the compared form: of paragraphs, and of sentences."""
        return self.settings.paragraph_bytes, self.settings.sentence_bytes

    def _pieces(self, text: str, code: bool) -> Iterator[tuple[int, int, int, str]]:
        """kind, index, inside (the index of its paragraph) and text of every passage.

        Blocks that are not prose (code, tables, headings) are no passages, nor is code without any
        mark: without its example or table a text is damaged.
        """
        number = count()
        for inside, paragraph in enumerate(_divided(text, code)):
            indices = [next(number) for _ in paragraph.sentences]
            if not paragraph.is_text:
                continue
            if self.settings.paragraphs:
                yield PARAGRAPH, inside, inside, paragraph.text
            if self.settings.sentences and not code:
                for index, sentence in zip(indices, paragraph.sentences, strict=True):
                    yield SENTENCE, index, inside, sentence

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Find every repeated passage, and decide what each document loses.

        Returns:
            Numbers of: compared (passages); repeated (passages that occur often enough);
            cut_paragraphs; cut_sentences; mostly_duplicate (documents that are dropped).
        """
        settings = self.settings
        least = {PARAGRAPH: settings.paragraph_repeats, SENTENCE: settings.sentence_repeats}
        passages = RepeatedPassages.of(repeated(work, least))
        decided = decide(passages, settings)
        work.hand_out(decided)
        compared = sum(pq.read_metadata(work.keys(name)).num_rows for name in work.parts)
        cuts = decided.filter(pc.invert(decided["held"]))["kind"].to_numpy()
        paragraphs, sentences, documents = np.bincount(cuts, minlength=3).tolist()
        return {
            "compared": compared,
            "repeated": len(passages.hash),
            "cut_paragraphs": paragraphs,
            "cut_sentences": sentences,
            "mostly_duplicate": documents,
        }

    def review(self, after: Aftermath) -> dict[str, Any]:
        """Count the passages of which a copy was cut and none is left.

        Returns:
            lost_with_holder: as `lost_passages.lost_with_holder` returns it.
        """
        return {"lost_with_holder": lost_with_holder(after, self.keys)}

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Cut or drop the documents of one part that the verdict names."""
        assert verdict is not None
        verdict = verdict.filter(pc.invert(verdict["held"]))
        if not len(verdict):
            return Outcome(table, removed([]))
        touched = pc.is_in(table["pos"], value_set=verdict["pos"].combine_chunks())
        gone: list[RemovedRow] = []
        kept: list[dict[str, Any]] = []
        cuts = _by_document(verdict)
        for row in table.filter(touched).to_pylist():
            left = self._cut(row, cuts[row["pos"]], gone)
            if left is not None:
                kept.append(left)
        changed = pa.Table.from_pylist(kept, schema=table.schema)
        whole = pa.concat_tables([table.filter(pc.invert(touched)), changed])
        return Outcome(whole.sort_by("pos"), removed(gone))

    def _cut(
        self, row: dict[str, Any], cuts: dict[int, set[int]], gone: list[RemovedRow]
    ) -> dict[str, Any] | None:
        """The document without its cut passages; None if it is dropped.

        Args:
            cuts: kind -> indices of what is cut, from `_by_document`.
            gone: gets a row of REMOVED for each reason.
        """
        pos, text = row["pos"], row["text"]
        size = len(text.encode())
        if DOCUMENT in cuts:
            (thousandths,) = cuts[DOCUMENT]
            detail = f"{thousandths / 10:.1f}% of its characters stand earlier"
            gone.append(RemovedRow(pos, "mostly_duplicate", size, True, detail))
            return None
        lost, sentences = cuts.get(PARAGRAPH, set()), cuts.get(SENTENCE, set())
        pieces = _divided(text, is_code(row["lang"]))
        keep = [index not in lost for index in range(len(pieces))]
        left = joined(pieces, chain(*_kept_sentences(pieces, keep, set())))
        cut = size - len(left.encode())
        if cut:
            place = sum(len(paragraph.text) for paragraph in pieces[: min(lost)])
            detail = _counted(len(lost), "paragraph")
            gone.append(RemovedRow(pos, "duplicate_paragraph", cut, False, detail, place))
        left = joined(pieces, chain(*_kept_sentences(pieces, keep, sentences)))
        if rest := size - len(left.encode()) - cut:
            places = _places_of_sentences(pieces, keep, sentences)
            detail = _counted(len(places), "sentence")
            gone.append(RemovedRow(pos, "duplicate_sentence", rest, False, detail, min(places)))
        if any(row.get(name) is not None for name in SCORES):
            row = {**row, **scores_left(row, left, _kept_sentences(pieces, keep, sentences))}
        return {**row, "text": left}


def _divided(text: str, code: bool) -> Sequence[Paragraph]:
    """The paragraphs of a text; those of code end at blank lines, whatever it looks like."""
    return code_paragraphs(text) if code else divide(text)


def _is_example(piece: str) -> bool:
    """Whether a piece of prose is code that nothing marks as such."""
    return piece.isascii() and is_unmarked_code(piece)


def _form(piece: str) -> str:
    """The compared form of a passage: single spaces for white space, case folded."""
    return " ".join(piece.split()).casefold()


def _code_form(piece: str) -> str:
    """The compared form of a paragraph of code: no white space at the ends of lines."""
    return "\n".join(line.rstrip() for line in piece.strip("\r\n").split("\n"))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# -- applying the decision -----------------------------------------------------------------


def _by_document(verdict: pa.Table) -> dict[int, dict[int, set[int]]]:
    """A verdict as pos -> kind -> indices."""
    cuts: dict[int, dict[int, set[int]]] = {}
    columns = (verdict[name].to_pylist() for name in ("pos", "kind", "index"))
    for pos, kind, index in zip(*columns, strict=True):
        cuts.setdefault(pos, {}).setdefault(kind, set()).add(index)
    return cuts


def _kept_sentences(
    pieces: Sequence[Paragraph], keep: list[bool], lost: set[int]
) -> list[list[bool]]:
    """Whether each sentence of each paragraph stays.

    Args:
        pieces: the paragraphs of a text.
        keep: which paragraphs stay.
        lost: indices of sentences that are cut, counted over the whole text.
    """
    index = count()
    return [
        [next(index) not in lost and stays for _ in piece.sentences]
        for piece, stays in zip(pieces, keep, strict=True)
    ]


def _places_of_sentences(
    pieces: Sequence[Paragraph], keep: list[bool], lost: set[int]
) -> list[int]:
    """Where the cut sentences begin that are in no cut paragraph, in characters of the text."""
    flags = chain(*_kept_sentences(pieces, keep, lost))
    at, places = 0, []
    for piece, stays in zip(pieces, keep, strict=True):
        for sentence in piece.sentences:
            if not next(flags) and stays:
                places.append(at)
            at += len(sentence)
    return places
