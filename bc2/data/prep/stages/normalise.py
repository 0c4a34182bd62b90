"""Normalise texts: line ends, control characters and, if the settings ask for it, white space, NFC.

The rewrites are regular expressions of pyarrow (RE2), which apply only to documents with a match.
NFC is that of `unicode_forms`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.prep.settings import NormaliseSettings
from bc2.data.prep.stages.base import RECORD, REMOVED, Outcome, PrepStage, dropped
from bc2.data.prep.text.unicode_forms import nfc

#: Line ends: what Python's str.splitlines splits at, which is what Unicode's newline guidelines
#: name (CR, LF, CRLF, NEL, VT, FF, LS, PS; a form feed stands between pages) and the information
#: separators FS, GS and RS; and CR NEL, as XML 1.1 has it.
_LINE_ENDS = r"\r[\n\x{85}]?|[\x{B}\x{C}\x{1C}-\x{1E}\x{85}\x{2028}\x{2029}]"

#: The separator of the parts of a record is white space, but ends no line.
_UNIT_SEPARATOR = r"\x{1F}"

#: The rest of Unicode's category Cc except tab and LF, and U+FEFF. None of it is white space.
_CONTROLS = r"[\x{0}-\x{8}\x{E}-\x{1B}\x{7F}-\x{84}\x{86}-\x{9F}\x{FEFF}]+"

#: White space within a line, as Python's str.isspace() has it: RE2's \s lacks most of it.
_SPACES = r"[\t\x{20}\x{A0}\x{1680}\x{2000}-\x{200A}\x{202F}\x{205F}\x{3000}]"


class NormaliseStage(PrepStage):
    """Normalises each text; `id` stays that of the text as it was read.

    Every line end becomes LF, and no words are joined: what white space separates stays separated.

    Removed bytes are counted by reason: ``line_ends`` (the CR of CRLF; of line ends of several
    bytes all but one), ``control_characters``, ``line_spaces`` and ``blank_lines``. NFC, which may
    also lengthen a text, is not counted. A document with nothing but white space is dropped
    (``empty``).
    """

    name = "normalise"
    version = 2
    reasons = ("line_ends", "control_characters", "line_spaces", "blank_lines", "empty")

    def __init__(self, settings: NormaliseSettings):
        self.settings = settings

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Normalise one part."""
        text = table["text"].combine_chunks()
        cuts = []
        for reason, pattern, into in self._rewrites():
            text, cut = _rewrite(text, pattern, into)
            cuts.append((reason, cut))
        if self.settings.nfc:
            # pyarrow's own NFC (25.0) decomposes and does not compose.
            text = pa.array([nfc(each) for each in text.to_pylist()], pa.large_string())
        empty = pc.invert(pc.match_substring_regex(text, rf"[^\n{_SPACES[1:]}"))
        kept = pc.invert(empty)
        gone = [dropped(table, empty, "empty")]
        gone += [_cut(table["pos"], cut, reason, kept) for reason, cut in cuts]
        at = table.schema.get_field_index("text")
        normal = table.set_column(at, RECORD.field("text"), text)
        return Outcome(normal.filter(kept), pa.concat_tables(gone))

    def _rewrites(self) -> list[tuple[str, str, str]]:
        """(reason, regular expression, replacement) of each rewrite, in order."""
        rewrites = [
            ("line_ends", _LINE_ENDS, "\n"),
            ("control_characters", _UNIT_SEPARATOR, " "),
            ("control_characters", _CONTROLS, ""),
        ]
        if self.settings.strip_lines:
            rewrites.append(("line_spaces", rf"(?m){_SPACES}+$", ""))
        if self.settings.blank_lines is not False:
            blank = rf"(?:{_SPACES}*\n)"
            kept = rf"((?:^|\n){blank}{{{self.settings.blank_lines}}})"
            rewrites.append(("blank_lines", rf"{kept}{blank}+", r"\1"))
        return rewrites


def _rewrite(text: pa.Array, pattern: str, into: str) -> tuple[pa.Array, pa.Array]:
    """The texts with every match replaced, and the bytes by which each became shorter."""
    found = pc.match_substring_regex(text, pattern)
    if not pc.any(found).as_py():
        return text, pa.repeat(pa.scalar(0, pa.int64()), len(text))
    new = pc.replace_substring_regex(text.filter(found), pattern, into)
    rewritten = pc.replace_with_mask(text, found, new)
    return rewritten, pc.subtract(_bytes(text), _bytes(rewritten))


def _bytes(text: pa.Array) -> pa.Array:
    return pc.binary_length(text.cast(pa.large_binary())).cast(pa.int64())


def _cut(pos: Any, cut: pa.Array, reason: str, kept: pa.Array) -> pa.Table:
    """A table REMOVED for bytes `cut` out of the documents that are `kept`."""
    some = pc.and_(kept, pc.greater(cut, 0))
    count = pc.sum(some).as_py() or 0
    columns = [
        pos.filter(some),
        pa.repeat(pa.scalar(reason), count),
        cut.filter(some),
        pa.repeat(pa.scalar(False), count),
        pa.nulls(count, pa.string()),
        pa.nulls(count, pa.int64()),
    ]
    return pa.table(columns, schema=REMOVED)
