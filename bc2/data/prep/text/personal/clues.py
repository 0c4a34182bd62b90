"""What the words before a number say about it: the nearest word that says anything decides."""

from __future__ import annotations

import re

#: How far before a number a word may speak for it, in characters.
REACH = 48

#: How far before it a word may speak against it. It must also be the label of this number: with no
#: other number, and few Chinese characters, in between.
REACH_AGAINST = 20
CHINESE_AGAINST = 4
_LONGEST = 10  # a word may begin farther away
_DIGIT = re.compile(r"\d")
_CHINESE = re.compile("[\u4e00-\u9fff]")

#: Latin words, also inside ``cardNumber`` and ``card_number``; names of numbers.
_LATIN = (
    r"(?<![A-Za-z])(?:[Ii][Dd][ _-]?(?:[Cc]ard|[Nn]umber|[Nn]o)|[PpSs]/[Nn])\b"
    r"|(?<![A-Za-z])(?:[Mm]y|[Hh]is|[Hh]er|[Oo]ur|[Yy]our|[Tt]heir) number\b"
    r"|[A-Z]?[a-z]+|[A-Z]+(?![a-z])"
)
_JOINED = str.maketrans("", "", " _-")

#: Signs right before an amount or a number in a list.
_SIGN = re.compile(r"(?:[$€£¥￥§№] ?|(?<![A-Za-z])#)\Z")

#: What may stand between a number and a Chinese word of one character that is its label.
_GAP = " \t:：=\"'“”（("


class Clues:
    """Words that speak for a kind of personal data, and words that speak against it.

    Latin words are compared whole and in lower case, Chinese ones as they stand; those of one
    character count only next to the number.
    """

    def __init__(self, yes: str, no: str):
        """Take words separated by white space."""
        self._says = dict.fromkeys(yes.split(), True) | dict.fromkeys(no.split(), False)
        chinese = sorted((word for word in self._says if not word.isascii()), key=len, reverse=True)
        self._ascii = re.compile(_LATIN)
        first = "".join(dict.fromkeys(word[0] for word in chinese))
        self._any = re.compile(f"{_LATIN}|(?=[{first}])(?:{'|'.join(chinese)})")

    def before(self, text: str, start: int, reach: int = REACH, lines: int = 2) -> bool | None:
        """True: the nearest word speaks for it; False: against it; None: no word says anything.

        Args:
            text: any text.
            start: where the number begins.
            reach: how far before it words may speak for it.
            lines: how many lines count, the number's own among them.
        """
        window = text[max(0, start - max(reach, REACH_AGAINST) - _LONGEST) : start]
        near = "\n".join(window.rsplit("\n", lines)[-lines:])
        if _SIGN.search(near):
            return False
        found = list((self._ascii if near.isascii() else self._any).finditer(near))
        for at in reversed(range(len(found))):
            says = self._of(found[at])
            if says is not None and _counts(
                found[at].group(), near[found[at].end() :], says, reach
            ):
                # 号 and 码 say nothing after a word that does
                named = at > 0 and found[at - 1].end() == found[at].start()
                return says or (named and self._of(found[at - 1]) is True)
        return None

    def _of(self, match: re.Match[str]) -> bool | None:
        return self._says.get(match.group().lower().translate(_JOINED))


def _counts(word: str, between: str, says: bool, reach: int) -> bool:
    """Whether a word counts that has some text between it and the number."""
    if len(word) == 1 and not word.isascii():
        return not between.strip(_GAP)
    if says:
        return len(between) <= reach
    if len(between) > REACH_AGAINST or _DIGIT.search(between):
        return False
    return len(_CHINESE.findall(between)) <= CHINESE_AGAINST
