"""Words from the table of characters, against regular expressions that define them."""

from __future__ import annotations

import gzip
import json
import os
import re
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bc2.data.prep.text import word_hashes as words

CJK = re.compile("[\u3000-\u9fff\U00020000-\U0003ffff]")


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def by_expressions(texts: list[str]) -> list[str]:
    """NFKD and lower case, with spaces for separators and around each CJK character."""
    plain = pc.utf8_lower(pc.utf8_normalize(column(texts), form="NFKD"))
    spaced = pc.replace_substring_regex(plain, r"[^\p{L}\p{M}\p{N}]+", " ").to_pylist()
    return [" ".join(CJK.sub(r" \g<0> ", text).split(" ")).split() for text in spaced]


def check(texts: list[str]) -> None:
    expected = [" ".join(found) for found in by_expressions(texts)]
    assert words.words_of(column(texts)).to_pylist() == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8))
@example(["e\u0323\u0301", "e\u0301\u0323", "\u1e69", "s\u0307\u0323"])  # NFKD reorders marks
@example(["…", "½ cup", "´", "ﬁne", "İstanbul", "한국어", "", "天。地\u302a", "Ｆｕｌｌ　ｗｉｄｅ"])
def test_any_text(texts):
    check(texts)


def test_every_character_alone_and_between_others():
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    check(every)
    check(["".join(f"a{letter}\u0323\u4e00" for letter in every[i::64]) for i in range(64)])


@pytest.mark.parametrize("name", ["code", "en_gutenberg", "zh_modern_translation"])
def test_real_documents(name):
    folder = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "corpus"
    path = folder / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        check([json.loads(line)["text"][:50_000] for line in islice(stream, 80)])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab é½天地 .\u0301한"), max_size=30), max_size=8),
    cut=st.integers(0, 8),
    block=st.integers(1, 9),
)
def test_hashes_are_equal_where_words_are(texts, cut, block):
    together = column(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_BLOCK", block)
        apart = [words.hashed_words(part) for part in (together[:cut], together[cut:])]
    found = words.hashed_words(together)
    for name in ("hashes", "counts"):
        assert np.array_equal(
            np.concatenate([getattr(one, name) for one in apart]), getattr(found, name)
        )
    told = [text.split(" ") if text else [] for text in words.words_of(together).to_pylist()]
    assert found.counts.tolist() == [len(text) for text in told]
    hashes: dict[str, int] = {}
    ends = np.cumsum([0, *found.counts])
    for text, (a, b) in zip(told, pairwise(ends), strict=True):
        for word, value in zip(text, found.hashes[a:b].tolist(), strict=True):
            assert hashes.setdefault(word, value) == value
    assert len(set(hashes.values())) == len(hashes)
