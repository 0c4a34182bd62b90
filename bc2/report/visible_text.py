"""Text of unknown origin and byte counts, as a page or a terminal may show them."""

from __future__ import annotations

import re
import unicodedata

#: Joiners that scripts and emoji need: the only format characters shown as they are.
_JOINERS = "\u200c\u200d"

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def visible(text: str, most: int | None = None) -> str:
    r"""A text in which nothing acts and nothing hides.

    Control characters but newline and tab, format characters (of direction, of no width),
    private and unassigned ones and half surrogate pairs become ``\xNN``, ``\uNNNN`` or
    ``\UNNNNNNNN``: a terminal obeys some of them, a page turns round at others.

    Args:
        most: characters of `text` to show; an ellipsis marks a cut.
    """
    shown = text if most is None or len(text) <= most else text[:most] + "…"
    return shown if shown.isascii() and shown.isprintable() else "".join(map(_visible, shown))


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    plain = character in "\n\t" or character in _JOINERS
    if plain or not (category[0] == "C" or category in ("Zl", "Zp")):
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def language_tag(lang: str | None) -> str | None:
    """`lang` where it has the form of a BCP 47 language ("zh"), which picks a page's glyphs."""
    return lang if lang and _LANGUAGE.fullmatch(lang) else None


def size(count: int) -> str:
    """Bytes in decimal units: 999 B, 1.50 kB, 157.30 MB; below zero with a minus."""
    for unit, name in ((10**15, "PB"), (10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if abs(count) >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count} B"
