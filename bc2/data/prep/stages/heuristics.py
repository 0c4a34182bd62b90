"""Drop documents by heuristic rules about their form: of Gopher, C4, FineWeb and, for code, Codex.

The rules of a document's language group are applied in a fixed order, and the first rule that a
document fails drops it. The reason is the rule's key in the recipe, and the detail is the measured
value. Language identification takes the most time, so it comes last.

Except in source code, rules measure prose: code, tables, headings and addresses are no repeated
lines, no symbols and no boilerplate. Only `min_words` counts the words of code, tables and headings
too, and what repeats is a share of prose and code. A document that fails is judged again without
the lines that are code though nothing marks them (`bc2.data.prep.text.markup.unmarked_code`). A
document whose prose alone has fewer words than that is judged by no other rule of its prose: shares
of a few words mean nothing. If it has no code, its tables and headings are judged by what they
repeat and whether they have words of sentences, since they are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.language_tags import UNKNOWN, is_code, normal_tag, primary
from bc2.data.prep.heuristics_settings import HeuristicsSettings
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.data.prep.stages.heuristic_rules.judgement import Verdict, judge, judge_twice
from bc2.data.prep.stages.heuristic_rules.rules import MARKERS, NGRAMS, RULES
from bc2.data.prep.text.document_statistics import DocumentStatistics, document_batches
from bc2.data.prep.text.language_id import check_languages, identify
from bc2.data.prep.text.sentences import prose_of

LanguageGroup = Literal["en", "zh", "code", "other"]

#: A document of unknown language is Chinese if so many of its letters are CJK characters.
_CJK_SHARE = 0.3


class HeuristicsStage(PrepStage):
    """Drop documents that fail a rule of their language group.

    Memory: about 60 bytes for each character of a batch of a million, and 35 MB of tables.
    """

    name = "heuristics"
    version = 2
    reasons = (*MARKERS, *(rule.setting for rule in RULES), *NGRAMS, "language")

    def __init__(self, settings: HeuristicsSettings):
        """
        Raises:
            RecipeError: a language of the settings cannot be identified.
        """
        if settings.languages:
            check_languages(settings.languages)
        self.settings = settings

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Apply the rules to one part."""
        texts = [text[: self.settings.head] for text in table["text"].to_pylist()]
        langs = table["lang"].to_pylist()
        prose = [t if is_code(lang) else prose_of(t) for t, lang in zip(texts, langs, strict=True)]
        groups = self._groups(prose, langs)
        verdicts: list[Verdict] = [None] * len(texts)
        for group in sorted(set(groups)):
            rows = [row for row, group_of_row in enumerate(groups) if group_of_row == group]
            look = judge if group == "code" else judge_twice
            judged = look(
                [prose[row] for row in rows],
                getattr(self.settings, group),
                [texts[row] for row in rows],
            )
            for row, verdict_of_row in zip(rows, judged, strict=True):
                verdicts[row] = verdict_of_row
        if self.settings.languages:
            self._identify(prose, groups, verdicts)
        return _outcome(table, verdicts)

    def _groups(self, texts: list[str], langs: list[str | None]) -> list[LanguageGroup]:
        """Each document's language group: see `HeuristicsSettings`."""
        groups = [_stated(lang) for lang in langs]
        unknown = [row for row, group in enumerate(groups) if group is None]
        scripts = by_script([texts[row] for row in unknown])
        for row, group in zip(unknown, scripts, strict=True):
            groups[row] = group
        return [group for group in groups if group is not None]

    def passes_over(self, lang: str | None) -> str | None:
        known = normal_tag(lang) == UNKNOWN or _stated(lang) is not None
        return None if known else "judges it by its letters, as Chinese or as other text"

    def _identify(
        self,
        texts: list[str],
        groups: list[LanguageGroup],
        verdicts: list[Verdict],
    ) -> None:
        for row, text in enumerate(texts):
            if verdicts[row] is not None or groups[row] == "code":
                continue
            found = identify(text, self.settings.languages)
            if found.allowed < self.settings.min_confidence:
                limit = self.settings.min_confidence
                detail = f"language {found.language}, allowed {found.allowed:.2f} < {limit:g}"
                verdicts[row] = ("language", detail)


def _stated(lang: str | None) -> LanguageGroup | None:
    stated = primary(lang)
    return stated if stated in ("en", "zh", "code") else None  # type: ignore[return-value]


def by_script(texts: Sequence[str]) -> list[LanguageGroup]:
    """The language group of texts by their letters: ``zh`` if at least 30% are CJK characters.

    All others are ``other``.
    """
    groups: list[LanguageGroup] = []
    for part in document_batches(texts):
        form = DocumentStatistics(texts[part])
        chinese = (form.cjk > 0) & (form.cjk >= _CJK_SHARE * form.letters)
        groups += ["zh" if each else "other" for each in chinese.tolist()]
    return groups


def _outcome(table: pa.Table, verdicts: list[Verdict]) -> Outcome:
    sizes = pc.binary_length(table["text"].cast(pa.large_binary())).to_pylist()
    positions = table["pos"].to_pylist()
    kept = pa.array([verdict is None for verdict in verdicts], pa.bool_())
    rows = [
        RemovedRow(positions[at], verdict[0], sizes[at], True, verdict[1])
        for at, verdict in enumerate(verdicts)
        if verdict is not None
    ]
    return Outcome(table.filter(kept), removed(rows))
