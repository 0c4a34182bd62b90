"""Language identification: the languages of plain texts, sums over varieties, unknown codes."""

from __future__ import annotations

import pytest

from bc2.data.prep.text.language_id import SAMPLE, check_languages, identify
from bc2.errors import RecipeError

TEXTS = {
    "en": "The committee met on Tuesday to discuss the new budget and its effect on schools.",
    "zh": "委员会星期二开会，讨论新的预算案以及它对学校的影响。大家都发表了自己的意见。",
    "fr": "Le comité s'est réuni mardi pour discuter du nouveau budget et de ses effets.",
    "ru": "Комитет собрался во вторник, чтобы обсудить новый бюджет и его влияние на школы.",
    "ja": "委員会は火曜日に集まり、新しい予算とその学校への影響について話し合いました。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_plain_texts(language):
    found = identify(TEXTS[language], [language])
    assert found.language == language
    assert found.allowed > 0.8
    others = [code for code in TEXTS if code != language]
    assert identify(TEXTS[language], others).allowed < 0.1
    assert identify(TEXTS[language], list(TEXTS)).allowed <= 1


def test_classical_chinese_is_chinese():
    text = "孙武论之曰：九变之地，屈伸之利，人情之理，不可不察。故兵之情，围则御之。"
    assert identify(text, ["zh"]).allowed > 0.8
    assert identify(text, ["en"]).allowed < 0.05


def test_only_the_beginning_is_looked_at():
    head = (TEXTS["en"] * 20)[:SAMPLE]
    assert identify(head + TEXTS["ru"] * 50, ["en"]) == identify(head, ["en"])


@pytest.mark.parametrize("text", ["", " \n", "12 34", "@@@"])
def test_a_text_without_letters_is_of_no_language(text):
    assert identify(text, ["en", "zh"]).allowed < 0.1


def test_unknown_codes():
    check_languages(["en", "zh", "yue"])
    with pytest.raises(RecipeError, match="no language 'cn' can be identified"):
        check_languages(["en", "cn"])
    with pytest.raises(RecipeError, match="did you mean 'zh'"):
        check_languages(["zh_Hans"])


def test_the_case_of_a_code_is_no_matter():
    check_languages(["EN", "Zh"])
    assert identify(TEXTS["zh"], ["ZH"]) == identify(TEXTS["zh"], ["zh"])
