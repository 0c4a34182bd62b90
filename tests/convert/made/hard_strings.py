"""Strings that tell two tokenizers apart: parts of texts, and runs of what text rarely holds."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

#: None is the name of a control token: those a library finds in text, and bc2 never does.
HARD = (
    "", " ", "  ", "   ", "\n", "\r\n", "\r", "\t", "\t\t\t\t\t", " \n \n \n ", "\x00", "a\x00b",
    "\x01\x02\x7f\x85", "\u2581", "\u2581\u2581", "a\u2581b", " \u2581 \u2581", "\u2581x ",
    "\u3000", "\xa0", "\u200b\u200d", "\u2028\u2029", "\ufeff", "\ufffd", "\ufdd0", "\U0010ffff",
    "é", "e\u0301", "ﬁ", "①", "Å\u212b", "ｆｕｌｌ", "한국어", "\u1112\u1161\u11ab", "👩‍👩‍👧‍👦🇨🇳",
    "天地玄黄，宇宙洪荒", "𠀀𪛖", "<0x0A>", "<0xE4><0xB8>", "<|im_start|", "</", "<unk", "ab" * 40,
)  # fmt: skip

#: Alphabets whose runs are merged in many ways.
_RUNS = (" ", "\t", "\n", " \n", "\t ", "=-", "0", "01", "ab", "哈", "的了", "é", "*#", "\u2581 ")


def hard_strings(texts: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`HARD`, and `count` parts of texts; every seventh with runs or hard strings put in."""
    chance = random.Random(seed)
    found = list(HARD)
    for number in range(count):
        text = chance.choice(texts)
        at = chance.randrange(max(1, len(text) - 300))
        part = text[at : at + chance.randint(1, 300)]
        if number % 7 == 0:
            put_in = run(chance) if number % 2 else chance.choice(HARD)
            at = chance.randint(0, len(part))
            part = part[:at] + put_in + part[at:]
        found.append(part)
    return found


def run(chance: random.Random) -> str:
    letters = chance.choice(_RUNS)
    if chance.random() < 0.5:
        return letters * chance.randint(1, 40)
    return "".join(chance.choices(letters, k=chance.randint(1, 60)))


def real_texts(corpus: Path, each: int = 400) -> list[str]:
    """The first documents of each of the shared corpora: Chinese, English and code."""
    found = []
    for path in sorted(corpus.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line)["text"] for line in itertools.islice(file, each)]
    return found
