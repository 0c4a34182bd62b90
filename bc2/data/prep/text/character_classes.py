"""Classes of characters, as a table that NumPy can look up for many characters at once."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

# Every character has exactly one class.
(OTHER, SPACE, BREAK, CJK, LETTER, ASCII_LETTER, DIGIT, ASCII_DIGIT, HASH, DOT, ELLIPSIS) = range(
    11
)
TERMINAL, CLOSER, BULLET, BASE64 = range(11, 15)
CLASSES = 16

_MEMBERS = {
    HASH: "#＃",
    DOT: ".",
    ELLIPSIS: "…⋯",
    TERMINAL: "!?。！？；｡．‼⁇⁈⁉؟۔।॥",
    CLOSER: "\"'”’»」』〞＂）〕】》",
    BULLET: "-*•‣◦●○■□▪▫◆◇★·⁃–",
    BASE64: "+/",
}

#: Han, kana and bopomofo: scripts that put no space between words.
_CJK_BLOCKS = (
    (0x3005, 0x3007),
    (0x3041, 0x3096),
    (0x309D, 0x309F),
    (0x30A1, 0x30FA),
    (0x30FC, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFD),
)


@cache
def class_table() -> npt.NDArray[np.uint8]:
    """The class of every code point: [0x110000]."""
    of_category = {"L": LETTER, "M": LETTER, "N": DIGIT, "Z": SPACE}
    table = np.array(
        [of_category.get(unicodedata.category(chr(c))[0], OTHER) for c in range(0x110000)], np.uint8
    )
    table[[9, 11, 12, 13, 28, 29, 30, 31, 0x85]] = SPACE
    table[10] = BREAK
    for first, last in _CJK_BLOCKS:
        table[first : last + 1] = CJK
    ascii_part = table[:128]
    ascii_part[ascii_part == LETTER] = ASCII_LETTER
    ascii_part[ascii_part == DIGIT] = ASCII_DIGIT
    for number, members in _MEMBERS.items():
        table[[ord(c) for c in members]] = number
    return table


def which(*classes: int) -> Bools:
    """A mask that is True for some classes: [CLASSES]."""
    mask = np.zeros(CLASSES, bool)
    mask[list(classes)] = True
    return mask


LETTERS = which(CJK, LETTER, ASCII_LETTER)
DIGITS = which(DIGIT, ASCII_DIGIT)
ENCODED = which(ASCII_LETTER, ASCII_DIGIT, BASE64)
ENDS = which(DOT, ELLIPSIS, TERMINAL, CLOSER)

#: [CLASSES] bit 0 is set for letters, and bit 1 for digits.
LETTER_DIGIT = (LETTERS + 2 * DIGITS).astype(np.uint8)
