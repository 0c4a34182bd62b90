from __future__ import annotations

import pytest

from bc2.data.language_tags import (
    UNKNOWN,
    is_code,
    most_specific,
    named_by,
    names,
    normal_tag,
    primary,
)


@pytest.mark.parametrize("lang", ["zh", "ZH", "zh-CN", "zh_Hans", "zh-Hant-TW", " zh "])
def test_a_language_is_named_by_its_beginning_whatever_the_case(lang: str) -> None:
    assert names("zh", lang)
    assert primary(lang) == "zh"


@pytest.mark.parametrize(
    ("key", "lang"), [("zh-CN", "zh"), ("en", "eng"), ("zh", "za"), ("zh", None)]
)
def test_other_languages_are_not_named(key: str, lang: str | None) -> None:
    assert not names(key, lang)


def test_code_of_any_language_is_code() -> None:
    assert all(map(is_code, ("code", "Code-Python", "code_go")))
    assert not any(map(is_code, ("codex", "en", None)))


def test_no_language_is_unknown() -> None:
    assert normal_tag(None) == normal_tag("") == normal_tag("Und") == UNKNOWN
    assert names("und", None)
    assert names("unknown", "und")
    assert named_by(("en", "unknown"), None)


@pytest.mark.parametrize(
    ("lang", "key"), [("zh", "zh"), ("ZH_CN", "zh-CN"), ("zh-TW", "zh"), ("en", None)]
)
def test_of_several_keys_the_longest_counts(lang: str, key: str | None) -> None:
    assert most_specific(["zh", "zh-CN", "fr"], lang) == key
