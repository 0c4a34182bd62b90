"""Parts of documents as reports show them: around a place, with personal data masked.

Reports are read by more people than corpora, so what they show is masked whatever the settings of
`safety` are. A number may look personal only in an excerpt, where what stood before it is missing;
it is masked as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, get_args

from bc2.data.language_tags import is_code
from bc2.data.prep.settings import PersonalKind
from bc2.data.prep.text.personal_data import IN_CODE, PersonalData, find_personal, mask_personal

_KINDS: frozenset[PersonalKind] = frozenset(get_args(PersonalKind))
_MASK = "[{KIND}]"

#: What stands for personal data in an excerpt.
MASKS = re.compile("|".join(rf"\[{kind.upper()}\]" for kind in sorted(_KINDS)))

#: Characters on both sides of an excerpt in which personal data that reaches into it may begin or
#: end: the longest is a private key, of RSA with 8,192 bits some 6,500.
_REACH = 8192


class Excerpt(NamedTuple):
    """A part of a text, and the place that it shows: text[start:stop]."""

    text: str
    start: int
    stop: int

    def masked(self, found: Sequence[PersonalData]) -> Excerpt:
        """The excerpt with each piece of `found` masked; a place in a piece becomes its mask."""
        start, stop = self.start, self.stop
        for piece in reversed(found):
            grown = len(_mask(piece)) - (piece.end - piece.start)
            if piece.start < start:
                start = piece.start if start < piece.end else start + grown
            if piece.start < stop:
                stop = max(stop, piece.end) + grown
        return Excerpt(mask_personal(self.text, found, _MASK), start, stop)


def excerpt(
    text: str, lang: str | None, place: tuple[int, int], before: int, after: int
) -> Excerpt:
    """The part of a text around a place, without personal data. No mask is cut.

    Args:
        lang: the stated language: in code only e-mail addresses and keys are personal.
        place: first and last character (exclusive) of what is shown.
        before, after: characters of the text to show on both sides; masks may be longer.
    """
    start, stop = place
    first, last = max(0, start - before), min(len(text), stop + after)
    low = max(0, first - _REACH)
    found = _personal(text[low : last + _REACH], lang)
    for piece in found:
        if piece.start + low < first < piece.end + low:
            first = piece.start + low
        if piece.start + low < last < piece.end + low:
            last = piece.end + low
    shift = low - first
    inside = [
        PersonalData(piece.start + shift, piece.end + shift, piece.kind)
        for piece in found
        if first <= piece.start + low and piece.end + low <= last
    ]
    shown = Excerpt(text[first:last], start - first, stop - first).masked(inside)
    while inside := _personal(shown.text, lang):
        shown = shown.masked(inside)
    return shown


def beginning(text: str, lang: str | None, most: int) -> str:
    """At most `most` characters of the beginning of a text, without personal data or half masks."""
    shown = excerpt(text, lang, (0, 0), 0, most).text
    cuts = [mask.start() for mask in MASKS.finditer(shown) if mask.start() < most < mask.end()]
    return shown[: min([most, *cuts])]


def _personal(text: str, lang: str | None) -> list[PersonalData]:
    return find_personal(text, IN_CODE if is_code(lang) else _KINDS)


def _mask(piece: PersonalData) -> str:
    return _MASK.format(KIND=piece.kind.upper())
