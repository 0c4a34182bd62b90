"""Strings on which tokenizers differ, and conversations with what their templates differ on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bc2.convert.proof.consumer import Said

#: Of the strings of a proof; the others are cut from real texts.
_HARD = 2000

_LONGEST = 200

_WHITE = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u200b", "\v", "\x85"]
_ODD = [
    "\u2581", "\u2581\u2581", "\x00", "\x07", "\x1b[0m", "\ufeff", "\ufffd", "\ufffe", "\U0010fffe",
    "e\u0301", "\u00e9", "\ufb01", "\uff21\uff22\uff13", "\u2460", "\u338f", "\u1e9b\u0323",
    "\u0130", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e8\U0001f1f3",
    "\u2764\ufe0f", "\U00020000", "\U0001d54f", "\u0627\u0644\u0639", "\u202e", "\u0e01\u0e33",
    "\uac00", "\u1100\u1161", "\u0928\u092e\u0938\u094d\u0924\u0947", "0", "007", "1234567890",
    "3.14", "1,000,000", "<0x41>", "<0x0A>", "''", "'s", "'LL", "don't", "...", "……", "——", "_",
    "CamelCase", "snake_case", "http://a.b/c?d=e", "\\n", "\\u2581", "%20", "&amp;",
]  # fmt: skip
_BROKEN = ["\udc80", "\udcff\udcfe", "\ud800", "\udfff", "\ud83d", "a\udce4b"]
_WORDS = [
    "the",
    "Hello",
    "token",
    "北京",
    "语言模型",
    "naïve",
    "x",
    "def",
    "return",
    "。",
    "，",
    "!",
]


def strings(texts: Sequence[str], controls: Sequence[str], count: int, seed: int) -> list[str]:
    """What tokenizers are compared on: cut from real texts, and hard ones. The same every time.

    Args:
        controls: names of control pieces.
    """
    chance = random.Random(seed)
    hard = min(_HARD, count // 2)
    some = list(controls)
    chance.shuffle(some)
    odd = [*_ODD, *_BROKEN, *some[:20]]
    fixed = [*_WHITE, *odd, *(f"a{one}b" for one in (*_WHITE, *odd)), *(f" {one}" for one in odd)]
    found = fixed[:hard]
    while len(found) < hard:
        kinds = [chance.choice((_WHITE, _WHITE, _ODD, _WORDS, _WORDS, odd)) for _ in range(6)]
        found.append("".join(chance.choice(kind) for kind in kinds[: chance.randint(2, 6)]))
    return [*found, *(_cut(texts, chance) for _ in range(count - hard))]


def _cut(texts: Sequence[str], chance: random.Random) -> str:
    text = chance.choice(texts)
    first = chance.randrange(len(text))
    return text[first : first + chance.randint(1, _LONGEST)]


def _conversation(*turns: str, system: str | None = None) -> list[Said]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*first, *({"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns))]


#: Odd numbers of turns are to be answered. They hold no text on which tokenizers differ: what is
#: compared is the template.
CONVERSATIONS: tuple[list[Said], ...] = (
    _conversation("Hello!"),
    _conversation("你好，请介绍一下你自己。"),
    _conversation("What is 2 + 2?", "4", "And twice that?"),
    _conversation("写一首短诗", "春风又绿江南岸", "再来一首", "明月何时照我还", "谢谢！"),
    _conversation("Hi", "Hi there. How can I help?"),
    _conversation("Be brief: why is the sky blue?", system="You are a helpful assistant."),
    _conversation("a\n\n  b\tc\n", "  d  ", "\n e \n"),
    _conversation("def f(x):\n    return x + 1\n", "It adds.", "😀 é 'it' \\n \"x\" {{ y }}"),
    _conversation("1", "2", "3", "4", system="用中文回答。\n不要解释。"),
    _conversation("x" * 300, "好" * 100, "?"),
)  # fmt: skip
