"""What a model's turns are sampled with where nobody says otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bc2.generate.generation_defaults import GenerationDefaults
from bc2.generate.model_settings import DEFAULTS, LONGEST_ANSWER, chat_settings, turn_settings

RELEASED = {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05}
BAICHUAN: Any = SimpleNamespace(name="baichuan")
CHATML: Any = SimpleNamespace(name="chatml")


def test_a_model_that_says_nothing_is_sampled_as_its_layouts_released_ones() -> None:
    assert turn_settings(GenerationDefaults(), BAICHUAN) == RELEASED
    assert turn_settings(GenerationDefaults(), CHATML) == {}
    length_alone = GenerationDefaults(max_new_tokens=9)
    assert turn_settings(length_alone, BAICHUAN) == {**RELEASED, "max_new_tokens": 9}
    own = GenerationDefaults(temperature=1.0)
    assert turn_settings(own, BAICHUAN) == {"temperature": 1.0}
    assert chat_settings(own, BAICHUAN, 64) == {
        **DEFAULTS, "temperature": 1.0, "max_new_tokens": 32,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "window", "longest"),
    [
        (None, 100, 50),
        (None, 1 << 20, LONGEST_ANSWER),
        (99, 100, 99),
        (100, 100, 50),  # its whole window
        (32_768, 4096, 2048),
        (None, 1, 1),
    ],
)
def test_an_answer_leaves_something_of_the_window(
    own: int | None, window: int, longest: int
) -> None:
    said = GenerationDefaults(max_new_tokens=own)
    assert chat_settings(said, CHATML, window)["max_new_tokens"] == longest
