"""What of a text a tokenizer does not give back, found by trying it.

A model may lack a piece for the space, normalise, squeeze white space, fold case or have no bytes
for what it has not seen. Its settings say some of that and its pieces the rest, so each kind of
text is encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

#: Texts of each kind, by what messages call it. Only the kinds of spaces overlap.
KINDS: Mapping[str, Sequence[str]] = {
    "spaces": ("a b", " "),
    "spaces at the beginning": (" a", "  a"),
    "spaces at the end": ("a ", "a  "),
    "several spaces in a row": ("a  b", "a     b"),
    "line ends": ("a\nb", "\n", "a\n\nb\n"),
    "tabs": ("a\tb", "\t\ta"),
    "carriage returns": ("a\r\nb", "a\rb"),
    "other white space": ("a\u00a0b", "a\u2003b", "a\u3000b", "a\u2028b"),
    "control characters": ("a\0b", "a\x01b", "a\x0bb", "a\x0cb", "a\x1bb", "a\x7fb", "a\x85b"),
    "format characters": ("a\u200bb", "a\u200db", "a\u00adb", "\ufeffa", "a\u202eb"),
    "ligatures, full-width and other compatibility characters": (
        *("\ufb01", "\ufb03", "\u00bd", "\u00b2", "\u2460", "\uff21", "\uff13", "\uff0c"),
        *("\uff76", "\u338f", "\u2026"),
    ),
    "characters that NFC replaces": ("\u212b", "\u2126", "\uf900"),
    "accents as characters of their own": ("e\u0301", "a\u0300\u0323", "\u1112\u1161\u11ab"),
    "accented characters": ("\u00e9", "\u00f1", "\u1ed9", "\ud55c"),
    "capital letters": ("A", "aB", "\u00c9", "Σ", "\u0130"),
    "the character U+2581": ("a\u2581b", "\u2581", "\u2581a"),
    "rare characters": ("\U0010fffe", "😀", "龘", "𪚥", "ᚠ", "\ufffd", "\u2585"),
    "lone surrogates": ("\ud800", "a\udfffb"),
}


def lost_kinds(round_trip: Callable[[str], str]) -> tuple[str, ...]:
    """The kinds of text, by their names in `KINDS`, of which one does not come back.

    Args:
        round_trip: encodes a text and decodes the ids.
    """
    return tuple(
        kind for kind, texts in KINDS.items() if any(round_trip(text) != text for text in texts)
    )


def lost_sentence(kinds: Sequence[str]) -> str:
    """What messages say of the kinds of text that do not come back."""
    return f"this tokenizer does not give back {'; '.join(kinds)}"
