from __future__ import annotations

from bc2.data.prep.text.recent import Recent


def test_what_was_found_is_remembered_until_it_is_too_much():
    found: list[str] = []

    def find(text: str) -> list[str]:
        found.append(text)
        return text.split()

    recent = Recent(find, lambda text, words: len(words), limit=4)
    assert recent("a b") == ["a", "b"]
    assert recent("a " + "b") is recent("a b")
    assert found == ["a b"]
    assert recent("c d e") == ["c", "d", "e"]  # five in all: the first is forgotten
    assert recent("a b") == ["a", "b"]
    assert found == ["a b", "c d e", "a b"]


def test_lone_surrogates_are_text():
    assert Recent(len, lambda text, size: 1, limit=9)("\ud800") == 1
