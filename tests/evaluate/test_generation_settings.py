"""A task's generation arguments mean what they mean to lm-eval's `hf` model."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from bc2.errors import UsageError
from bc2.evaluate.generation_settings import DEFAULT_NEW_TOKENS, generation_of

WINDOW, EOS = 4096, 2

LIMITS: list[dict[str, Any]] = [
    {},
    {"max_gen_toks": 32},
    {"max_new_tokens": 33},
    {"max_tokens": 34},
    {"max_completion_tokens": "35"},
    {"max_completion_tokens": 35, "max_tokens": 34, "max_gen_toks": 32.0},
    {"max_gen_toks": None, "max_new_tokens": 7},
    {"max_tokens": 5, "max_completion_tokens": 9},
]
UNTIL: list[dict[str, Any]] = [
    {},
    {"until": []},
    {"until": "\n\n"},
    {"until": ["\n", "Question:"]},
]
SAMPLING: list[dict[str, Any]] = [
    {},
    {"do_sample": False},
    {"do_sample": None},
    {"do_sample": False, "temperature": 0.8},
    {"do_sample": True, "temperature": 0.2},
    {"do_sample": True, "temperature": "0.5"},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
    {"temperature": 0.0, "top_p": 0.9},
    {"temperature": 0},
]


def made(
    arguments: dict[str, Any], window: int = WINDOW, *, eos_id: int = EOS, **others: Any
) -> Any:
    tokenizer: Any = SimpleNamespace(eos_id=eos_id, piece_of=lambda token: {EOS: "</s>"}[token])
    given = {"samples": 1, "temperature": 0.0, **others}
    return generation_of(arguments, window, tokenizer, **given)


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_arguments_are_those_that_lm_eval_makes_of_them(sampling: dict[str, Any]) -> None:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    for limit, until in itertools.product(LIMITS, UNTIL):
        arguments = {**limit, **until, **sampling}
        theirs = normalize_gen_kwargs(arguments, DEFAULT_NEW_TOKENS)
        found = made(arguments)
        assert found.sampling.max_new_tokens == found.wanted_tokens == theirs["max_gen_toks"]
        assert list(found.sampling.stop) == handle_stop_sequences(theirs["until"], "</s>")
        temperature = float(theirs.get("temperature", 0.0)) if theirs["do_sample"] else 0.0
        assert found.sampling.temperature == temperature
        drawn = temperature > 0
        assert found.sampling.top_p == (theirs.get("top_p", 1.0) if drawn else 1.0)
        assert found.sampling.top_k == (theirs.get("top_k", 0) if drawn else 0)
        assert found.sampling.min_p == (theirs.get("min_p", 0.0) if drawn else 0.0)
        assert found.sampling.stop_ids == (EOS,)
        assert found.sampling.repetition_penalty == 1
        assert found.prompt_tokens == WINDOW - theirs["max_gen_toks"]  # lm-eval's max_ctx_len


def test_lm_evals_default_is_known() -> None:
    from lm_eval.models.huggingface import HFLM

    made_ = object.__new__(HFLM)
    assert made_.max_gen_toks == DEFAULT_NEW_TOKENS


@pytest.mark.parametrize(
    ("window", "wanted", "new", "prompt"),
    [
        (512, 511, 511, 1),  # lm-eval refuses from here on
        (512, 512, 256, 256),
        (512, 1024, 256, 256),
        (257, 1024, 128, 129),
        (2, 1024, 1, 1),
    ],
)
def test_a_window_that_is_shorter_than_the_answer(
    window: int, wanted: int, new: int, prompt: int
) -> None:
    found = made({"max_gen_toks": wanted}, window)
    assert (found.sampling.max_new_tokens, found.prompt_tokens) == (new, prompt)
    assert found.wanted_tokens == wanted


def test_a_temperature_that_is_asked_for_replaces_the_tasks() -> None:
    found = made({"do_sample": False, "top_p": 0.9}, temperature=0.6, samples=8)
    assert (found.sampling.temperature, found.sampling.top_p, found.sampling.n) == (0.6, 0.9, 8)


def test_stop_texts_that_are_empty_are_left_out() -> None:
    assert made({"until": ["", "\n"]}).sampling.stop == ("\n", "</s>")
    assert made({"until": None}).sampling.stop == ("</s>",)
    assert made({"until": ["</s>", "\n"]}).sampling.stop == ("</s>", "\n")


def test_a_tokenizer_without_an_end() -> None:
    found = made({}, eos_id=-1).sampling
    assert (found.stop_ids, found.stop) == ((), ())


@pytest.mark.parametrize(
    ("arguments", "others", "message"),
    [
        ({"num_beams": 4}, {}, "generates with 'num_beams', which is unknown here; known are do_"),
        ({"max_length": 4}, {}, "generates with 'max_length'"),
        ({"max_gen_toks": 0}, {}, "max_new_tokens = 0: input should be greater than 0"),
        ({"temperature": 1, "top_k": -1}, {}, "top_k = -1: input should be greater"),
        ({"temperature": 1, "top_p": 0}, {}, "top_p = 0.0"),
        ({}, {"samples": 2000}, "n = 2000: input should be less than.*1024; ask for fewer --samp"),
    ],
)
def test_impossible_arguments(
    arguments: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        made(arguments, **others)


def test_what_the_model_says_itself() -> None:
    found = made({}, end_ids=(7, EOS, 7), repetition_penalty=1.05).sampling
    assert found.stop_ids == (EOS, 7)
    assert found.repetition_penalty == 1.05
    assert found.stop == ("</s>",)
