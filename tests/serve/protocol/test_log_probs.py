import math
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionTokenLogprob

from bc2.generate.requests import TokenLogProb
from bc2.serve.protocol.log_probs import (
    CompletionLogProbs,
    TextOffsets,
    chat_log_probs,
    finite,
    shown,
)
from bc2.serve.protocol.pieces import Piece

#: Two tokens of one text, a character in two tokens, a token without text.
TEXTS = [b"a", b" b", "模".encode()[:1], "模".encode()[1:], b"a", b""]


def text_of(token):
    return TEXTS[token]


def piece(tokens, text="", *, echoed=False):
    ids, numbers = zip(*tokens, strict=True)
    return Piece(text, ids, numbers, echoed=echoed)


def completion(tokens, top=2):
    return CompletionLogProbs(text_of, top).added([piece(tokens)])


@pytest.mark.parametrize(
    ("data", "text"), [(b" b", " b"), ("模".encode(), "模"), (b"\xe4\xb8", r"\xe4\xb8"), (b"", "")]
)
def test_the_text_of_a_token(data, text):
    assert shown(data) == text


def test_log_probabilities_of_a_completion_are_four_lists():
    numbers = TokenLogProb(-0.1, -0.2, ((1, -0.1), (0, -3.0)))
    assert completion([(0, None), (1, numbers)]) == {
        "tokens": ["a", " b"],
        "token_logprobs": [None, -0.1],
        "top_logprobs": [None, {" b": -0.1, "a": -3.0}],
        "text_offset": [0, 1],
    }


def test_the_token_that_is_there_is_beside_the_likeliest():
    numbers = TokenLogProb(-9.0, -9.0, ((1, -0.1), (0, -3.0)))
    assert completion([(2, numbers)])["top_logprobs"] == [
        {" b": -0.1, "a": -3.0, r"bytes:\xe6": -9.0}
    ]
    assert completion([(2, numbers)], top=0)["top_logprobs"] == [{r"bytes:\xe6": -9.0}]


def test_of_tokens_of_one_text_the_likelier_is_kept():
    assert completion([(4, TokenLogProb(-5.0, 0.0, ((0, -0.1), (1, -3.0))))])["top_logprobs"] == [
        {"a": -0.1, " b": -3.0}
    ]
    assert completion([(0, TokenLogProb(-0.1, 0.0, ((0, -0.1), (4, -3.0))))])["top_logprobs"] == [
        {"a": -0.1}
    ]


def test_a_token_has_one_number_in_both_lists():
    """lm-eval takes a token for the likeliest if no number is larger."""
    found = completion([(0, TokenLogProb(-0.1, 0.0, ((0, -0.1000001), (1, -3.0))))])
    assert found["token_logprobs"] == [max(found["top_logprobs"][0].values())]


def test_what_cannot_be_has_a_number_that_json_has():
    (entry,) = chat_log_probs([(0, TokenLogProb(-math.inf, 0.0))], text_of, 0)
    assert entry["logprob"] == finite(-math.inf) == -9999.0
    assert b"null" not in orjson.dumps(completion([(0, TokenLogProb(-math.inf, 0.0))]))


def test_log_probabilities_of_a_chat_are_openais():
    numbers = TokenLogProb(-0.1, -0.2, ((2, -0.1), (1, -3.0)))
    (entry,) = chat_log_probs([(2, numbers)], text_of, 1)
    read = ChatCompletionTokenLogprob.model_validate(entry, strict=True)
    assert (read.token, read.bytes, read.logprob) == (r"\xe6", [0xE6], -0.1)
    assert [(top.token, top.logprob) for top in read.top_logprobs] == [(r"\xe6", -0.1)]


def places(data):
    """For each byte the number of its character in the decoded text; one more for the end."""
    found = []
    at, characters = 0, 0
    while at < len(data):
        try:
            text = data[at:].decode()
            size = None
        except UnicodeDecodeError as error:
            text = data[at : at + error.start].decode()
            size = error.end - error.start
        for character in text:
            found += [characters] * len(character.encode())
            characters += 1
        if size is None:
            break
        found += [characters] * size
        characters += 1
        at = len(found)
    return [*found, characters]


BYTES = st.lists(
    st.sampled_from(
        [b"a", "模".encode(), "😀".encode(), b"\xe6", b"\xa8\xa1", b"\xff", b"\xf0\x9f"]
    )
    | st.binary(max_size=3),
    max_size=8,
).map(b"".join)


@given(data=BYTES, cuts=st.lists(st.integers(0, 30), max_size=10))
@example(data=b"aaa\xed\xa0", cuts=[4])
def test_offsets_are_those_of_the_whole_text(data, cuts):
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    offsets = TextOffsets()
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert len(data.decode(errors="replace")) == places(data)[-1]
    assert [offsets.push(piece) for piece in pieces] == [places(data)[a] for a in edges[:-1]]


def test_a_token_without_text_is_where_the_next_begins():
    offsets = TextOffsets()
    assert [offsets.push(data) for data in (b"ab", b"", b"c", b"")] == [0, 2, 2, 3]


@pytest.mark.parametrize(
    ("text", "ids", "offsets"),
    [
        (" b模", [1, 2, 3], [0, 2, 2, 3, 4]),
        # Its tokenizer puts a space before every text.
        ("b模", [1, 2, 3], [0, 1, 1, 2, 3]),
        # The prompt ends inside a character, which is a text of its own then.
        ("a�", [0, 2], [0, 1, 2, 3]),
    ],
)
def test_offsets_after_an_echoed_prompt_are_after_its_text(text, ids, offsets):
    number = TokenLogProb(-0.1, -0.1)
    prompt = piece([(i, number) for i in ids], text, echoed=True)
    found = CompletionLogProbs(text_of, 0).added([prompt, piece([(4, number), (4, number)], "aa")])
    assert found["text_offset"] == offsets


def test_a_token_without_its_log_probability_is_a_defect():
    with pytest.raises(ValueError, match="argument"):
        CompletionLogProbs(text_of, 0).added([Piece("a", [0])])
