"""One continuation: what ends it, and what it is then."""

import pytest

from bc2.generate.live import Live
from bc2.generate.requests import Request, TokenLogProb
from bc2.generate.sampling.seeds import sequence_key
from bc2.generate.sampling_config import SamplingConfig

PIECES = {0: b"", 1: b"a", 2: b"b", 3: b"ab", 4: "模".encode()[:2], 5: "模".encode()[2:], 6: b"x"}


def decode(ids):
    return b"".join(PIECES[token] for token in ids)


def live(prompt=(1, 2), number=0, decode_bytes=decode, **settings):
    return Live(3, number, Request(list(prompt), SamplingConfig(**settings)), decode_bytes)


def pushed(one, tokens, stop_ids=(9,), context=100):
    """Push tokens until one ends it; how many were pushed."""
    for count, token in enumerate(tokens, 1):
        one.push(token, stop_ids, context)
        if one.reason is not None:
            return count
    return None


def test_a_stop_id_ends_and_is_left_out():
    one = live()
    assert one.push(6, (9, 8), 100)
    assert not one.push(8, (9, 8), 100)
    assert (one.reason, one.ids, one.new) == ("stop_id", [1, 2, 6], 1)
    assert one.result().data == b"x"


def test_the_length_ends_by_the_setting_or_by_the_context():
    one = live(max_new_tokens=3)
    assert pushed(one, [6] * 9) == 3
    assert one.result().finish_reason == "length"
    # The prompt's two tokens and three new ones are read; a fourth can be predicted.
    assert pushed(live(), [6] * 9, context=5) == 4


@pytest.mark.parametrize(
    ("stop", "tokens", "count", "data"),
    [
        (("ab",), [6, 1, 2, 6], 3, b"x"),
        (("ab",), [6, 3, 6], 2, b"x"),
        (("ba",), [3, 3], 2, b"a"),
        (("bab", "b"), [1, 2], 2, b"a"),
        (("xx", "ax"), [1, 6], 2, b""),
        (("ab",), [1, 0, 0, 0, 2], 5, b""),
        (("模",), [1, 4, 0, 5], 4, b"a"),
        (("aba",), [1, 2, 2, 1, 2, 1], 6, b"abb"),
        # Of several the one that begins first, also if it ends later.
        (("b", "ab"), [6, 3], 2, b"x"),
    ],
)
def test_a_stop_text_ends_wherever_tokens_part(stop, tokens, count, data):
    one = live(stop=stop)
    assert pushed(one, [*tokens, 6, 6]) == count
    found = one.result()
    assert found.finish_reason == "stop"
    assert found.ids == tokens[:count]
    assert found.data == data


def test_text_that_only_begins_a_stop_text_is_kept():
    one = live(stop=("abab",), max_new_tokens=4)
    assert pushed(one, [3, 1, 1, 2]) == 4
    assert (one.reason, one.result().data) == ("length", b"abaab")


def test_the_prompt_does_not_complete_a_stop_text():
    one = live(prompt=[1], stop=("ab",), max_new_tokens=2)
    assert pushed(one, [2, 6]) == 2
    assert one.result().data == b"bx"


def test_seen_tokens_are_distinct_and_kept_only_where_they_count():
    one = live(prompt=[1, 2, 1], repetition_penalty=1.2)
    pushed(one, [6, 2, 6])
    assert sorted(one.seen) == [1, 2, 6]
    other = live(prompt=[1, 2, 1])
    pushed(other, [6])
    assert other.seen == []


def test_its_result_without_a_tokenizer_and_with_log_probabilities():
    one = live(decode_bytes=None, max_new_tokens=1, logprobs=0)
    number = TokenLogProb(-1.0, -0.5)
    one.log_probs.append(number)
    pushed(one, [6])
    assert one.result().data is None
    assert one.result().log_probs == [number]
    assert live(number=2, seed=5).key == sequence_key(5, 2)
    plain = live(max_new_tokens=1)
    pushed(plain, [6])
    assert plain.result().log_probs is None
