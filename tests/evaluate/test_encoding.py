"""The ids of prompts and answers, against lm-eval's own `TemplateLM`."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval_peer.tokenizing import TokenizingHFLM
from made_json_tokenizers import llama2_like, llama3_like, qwen_like

from bc2.errors import DataError
from bc2.evaluate.encoding import KEPT_BEGINNINGS, PromptEncoder, prefix_id
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"
SUBJECTS = ["天文学", "world history", "数学"]
EOS = 2


def question(number: int, answer: str = "") -> str:
    facts = random.Random(number)
    asked = facts.choice(["以下星座天区内梅西叶天体最多的是", "Which of these came first", "計算"])
    options = [f"{letter}. {asked[facts.randrange(9) :]}{facts.random():.3f}" for letter in "ABCD"]
    return f"Question: {asked} {number}？\n" + "\n".join(options) + f"\n答案：{answer}"


def prompts(subject: str, count: int, first: int = 0) -> list[str]:
    """Prompts of a subject: five worked examples, then a question."""
    shots = "\n\n".join(question(900 + n + len(subject), "ABCD"[n % 4]) for n in range(5))
    head = f"以下是关于{subject}的单项选择题 (multiple choice)。\n\n{shots}\n\n"
    return [head + question(first + n) for n in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [p for subject in SUBJECTS for p in prompts(subject, 8, first=100)]
    return Tokenizer.from_bytes(train(texts, TokenizerConfig(vocab_size=560)).model)


def lm_eval_pairs(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> list[Any]:
    """What lm-eval would have a model score."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

    class Encoding(TemplateLM):
        eot_token_id = EOS

        def tok_encode(self, string: str, add_special_tokens: Any = None, **_: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [(context, continuation) for _, context, continuation in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return Encoding().loglikelihood(requests, disable_tqdm=True)


def check_pair(
    tokenizer: Tokenizer, encoder: PromptEncoder, context: str, continuations: list[str]
) -> None:
    expected = lm_eval_pairs(tokenizer, [(context, text) for text in continuations])
    if all(ids and answer for ids, answer in expected):
        context_ids, answers = encoder.pair(context, continuations)
        assert [(context_ids, answer) for answer in answers] == expected
    else:
        # lm-eval's `hf` model asserts that neither is empty.
        with pytest.raises(DataError, match="has no tokens"):
            encoder.pair(context, continuations)


pieces = ["Question: ", "which", "答案：", "以下", " ", "  ", "\n", "\n\n", "A", "B. ", "\u3000"]
pieces += ["\u2581", "\ud800", "\0", "é", "1", "0.12", "\t", "<s>"]
some_text = st.lists(st.sampled_from(pieces) | st.text(max_size=2), max_size=12).map("".join)


@settings(max_examples=200, deadline=None)
@given(
    contexts=st.lists(some_text, min_size=1, max_size=4),
    answers=st.lists(some_text.filter(bool), min_size=1, max_size=4),
)
def test_any_pair_is_encoded_as_lm_eval_does(
    tokenizer: Tokenizer, contexts: list[str], answers: list[str]
) -> None:
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    for context in [*contexts, *[contexts[0] + more for more in contexts]]:
        check_pair(tokenizer, encoder, context, answers)
        assert encoder.encode(context) == tokenizer.encode(context)


@pytest.mark.parametrize(
    "answers",
    [["A", "B", "C", "D"], [" A", " B", " C", " D"], ["。", "1", "以下\n\nQuestion: which"]],
)
@pytest.mark.parametrize("ending", ["", " ", " \n", "A", "Answer:"])
def test_prompts_with_worked_examples_are_encoded_as_lm_eval_does(
    tokenizer: Tokenizer, answers: list[str], ending: str
) -> None:
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    for subject in [*SUBJECTS, SUBJECTS[0]]:
        for prompt in prompts(subject, 6):
            check_pair(tokenizer, encoder, prompt + ending, answers)


@pytest.mark.parametrize("name", ["baichuan_sp", "internlm_sp", "llama2_sp"])
def test_released_tokenizers_encode_as_lm_eval_does(name: str) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    tokenizer = Tokenizer.load(MODELS / name)
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    for subject in SUBJECTS:
        for prompt in prompts(subject, 5):
            check_pair(tokenizer, encoder, prompt, ["A", " B", "以下"])
            check_pair(tokenizer, encoder, prompt + " ", ["A", " B", "以下"])
    check_pair(tokenizer, encoder, "", ["A", " B", "以下"])


def test_worked_examples_are_encoded_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    for subject in SUBJECTS:
        asked = prompts(subject, 40)
        shared = asked[0].rindex("Question: ")
        encoded.clear()
        for prompt in asked:
            encoder.pair(prompt, ["A", "B", "C", "D"])
        assert len(asked[0]) > 2.5 * max(len(p) - shared for p in asked)
        # The first prompt, then what all begin with, at most twice (the head may be known),
        # and of every prompt what is its own.
        whole = sum(size > shared // 2 for size in encoded)
        assert 1 <= whole <= 2
        own = sum(len(prompt) - shared for prompt in asked)
        assert sum(encoded) < 3 * len(asked[0]) + 1.3 * own


def test_few_beginnings_are_kept(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    for number in range(3 * KEPT_BEGINNINGS):
        for prompt in prompts("很" * number, 2):
            assert encoder.encode(prompt) == tokenizer.encode(prompt)
    assert len(encoder._beginnings) == KEPT_BEGINNINGS


def test_an_empty_context_is_the_prefix(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    assert encoder.pair("", ["A"]) == ([EOS], [tokenizer.encode("A")])
    first, *rest = tokenizer.encode("以下是关于")
    assert rest
    assert PromptEncoder(tokenizer, prefix_id=first).pair("", ["以下是关于"]) == ([first], [rest])


@pytest.mark.parametrize(
    ("context", "continuation", "what"),
    [
        (
            "Question: 1\n答案：",
            "",
            "the continuation '' has no tokens after .*答案：'",
        ),
        ("", "", "the continuation '' has no tokens"),
        (" \n", "A", r"the context ' \\n' has no tokens"),
    ],
)
def test_what_has_no_tokens_is_named(
    tokenizer: Tokenizer, context: str, continuation: str, what: str
) -> None:
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    with pytest.raises(DataError, match=what) as raised:
        encoder.pair(context, ["A", continuation], where="cmmlu:astronomy:3")
    assert raised.value.where == "cmmlu:astronomy:3"


def test_an_answer_that_merges_into_its_context_is_an_error(tokenizer: Tokenizer) -> None:
    """Its text is part of the context's last token."""
    encoder = PromptEncoder(tokenizer, prefix_id=EOS)
    assert len(tokenizer.encode("Question")) == len(tokenizer.encode("Questio")) - 1
    with pytest.raises(DataError, match="the continuation 'n' has no tokens"):
        encoder.pair("Questio", ["n"])


@pytest.mark.parametrize(
    ("eos", "bos", "begin", "prefix"),
    [(2, 1, (), 2), (0, -1, (), 0), (-1, 1, (), 1), (-1, -1, (), -1), (2, 1, (7, 1), 1)],
)
def test_what_stands_before_a_text(eos: int, bos: int, begin: tuple[int, ...], prefix: int) -> None:
    tokenizer: Any = SimpleNamespace(eos_id=eos, bos_id=bos, begin_ids=begin)
    assert prefix_id(tokenizer) == prefix


@pytest.mark.parametrize("made", [llama3_like, llama2_like, qwen_like])
def test_texts_begin_as_in_lm_evals_hf_model(made: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bytes(made())
    peer = TokenizingHFLM(tmp_path, made())
    encoder, begins = PromptEncoder(tokenizer, prefix_id=prefix_id(tokenizer)), tokenizer.begin_ids
    asked = [*prompts(SUBJECTS[1], 3), "Question: a \n", "x"]
    if begins:
        asked += ["  ", ""]  # else what is before them is the end of text, and not hf's BOS
    for prompt in asked:
        answers = ["A", " B", "以下", "\n\nQuestion"]
        context, found = encoder.pair(prompt, answers)
        expected = peer.encoded_pairs([(prompt, one) for one in answers])
        assert [(context, ids) for ids in found] == expected
        if prompt:
            assert encoder.encode(prompt) == peer.encoded_prompt(prompt)
            assert context[: len(begins)] == list(begins)
