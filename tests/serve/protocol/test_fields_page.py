import re
from pathlib import Path

import pytest

from bc2.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeBody,
    RewardsBody,
    ScoreBody,
    StreamOptions,
    TokenizeBody,
)

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.mark.parametrize(
    "cls",
    [
        CompletionRequest,
        ChatRequest,
        ScoreBody,
        RewardsBody,
        TokenizeBody,
        DetokenizeBody,
        StreamOptions,
    ],
)
def test_the_page_has_every_field(cls):
    fields = PAGE.read_text(encoding="utf-8").split("## Fields")[1].split("\n## ")[0]
    named = {name for code in re.findall("`([^`]+)`", fields) for name in re.findall(r"\w+", code)}
    assert {*cls.model_fields, *cls.unsupported} <= named


@pytest.mark.parametrize("cls", [CompletionRequest, ChatRequest])
def test_the_page_has_every_value_that_asks_for_nothing(cls):
    rows = PAGE.read_text(encoding="utf-8").split("### Not supported")[1].split("\n### ")[0]
    for name, neutral in cls.unsupported.items():
        (row,) = [row for row in rows.splitlines() if f"`{name}`" in row]
        assert all(str(value).lower().replace("'", '"') in row for value in neutral), row
