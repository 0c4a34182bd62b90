"""Find personal data in text, and mask it.

A number counts as personal data only if there is evidence: its form, check digits and ranges in
use, and the words before it. `bc2.data.prep.text.personal` has each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bc2.data.prep.settings import PersonalKind
from bc2.data.prep.text.personal.addresses import emails, ips
from bc2.data.prep.text.personal.identity import bank_cards, id_cards, ssns
from bc2.data.prep.text.personal.keys import keys
from bc2.data.prep.text.personal.numbers import Numbers, numbers_of
from bc2.data.prep.text.personal.phones import phones

#: The kinds that are searched for in code, where other numbers are literals.
IN_CODE: frozenset[PersonalKind] = frozenset({"email", "key"})


class PersonalData(NamedTuple):
    """One piece of personal data: text[start:end]."""

    start: int
    end: int
    kind: PersonalKind


Places = Iterator[tuple[int, int]]


_OF_TEXT: dict[PersonalKind, Callable[[str], Places]] = {"key": keys, "email": emails, "ip": ips}

#: The kinds that are searched for only where a run of digits is.
_OF_NUMBERS: dict[PersonalKind, Callable[[list[Numbers]], Places]] = {
    "id_card": id_cards,
    "bank_card": bank_cards,
    "ssn": ssns,
    "phone": phones,
}

_BY_PRIORITY: tuple[PersonalKind, ...] = (*_OF_TEXT, *_OF_NUMBERS)


def find_personal(text: str, kinds: Iterable[PersonalKind]) -> list[PersonalData]:
    """Find personal data of some kinds, in the order of the text; no piece overlaps another.

    Where two would overlap, the kind that comes first among key, email, ip, id_card, bank_card,
    ssn and phone counts.
    """
    wanted = set(kinds)
    numbers = numbers_of(text) if wanted & _OF_NUMBERS.keys() else []
    taken = bytearray()
    found: list[PersonalData] = []
    for kind in _BY_PRIORITY:
        if kind not in wanted:
            continue
        places = _OF_NUMBERS[kind](numbers) if kind in _OF_NUMBERS else _OF_TEXT[kind](text)
        for start, end in places:
            taken = taken or bytearray(len(text))
            if 1 not in taken[start:end]:
                taken[start:end] = b"\1" * (end - start)
                found.append(PersonalData(start, end, kind))
    return sorted(found)


def mask_personal(text: str, found: Iterable[PersonalData], mask: str) -> str:
    """The text with each piece replaced by `mask`, formatted with ``KIND`` and ``kind``."""
    parts: list[str] = []
    end = 0
    for piece in found:
        parts += [text[end : piece.start], mask.format(KIND=piece.kind.upper(), kind=piece.kind)]
        end = piece.end
    return "".join([*parts, text[end:]])
