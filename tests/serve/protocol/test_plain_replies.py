import math

import orjson
import pytest
from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support

from bc2.generate.requests import Score
from bc2.serve.protocol.pieces import Usage
from bc2.serve.protocol.plain_replies import (
    detokenize_reply,
    scores_reply,
    tokenize_reply,
    tokenizer_info_reply,
)

TEXTS = [b"a", b" b", "模".encode()[:2]]


def scores(continuations, found):
    reply = scores_reply(
        continuations, found, Usage(7, 0), model="m", id="score-1", created=9,
        token_text=TEXTS.__getitem__,
    )  # fmt: skip
    return orjson.loads(orjson.dumps(reply))


def test_scores_say_each_token_and_the_whole():
    first = Score(0, [-0.5, -1.5], [True, False], 0, 1, [((0, -0.5),), ((1, -0.25),)])
    reply = scores([[0, 2]], [first])
    assert (reply["object"], reply["model"], reply["id"]) == ("score", "m", "score-1")
    assert reply["scores"] == [
        {
            "index": 0,
            "log_prob": -2.0,
            "greedy": False,
            "tokens": ["a", r"\xe6\xa8"],
            "token_ids": [0, 2],
            "token_logprobs": [-0.5, -1.5],
            "token_greedy": [True, False],
            "top_logprobs": [
                [{"token": "a", "token_id": 0, "logprob": -0.5}],
                [{"token": " b", "token_id": 1, "logprob": -0.25}],
            ],
            "cut": 0,
        }
    ]
    assert reply["usage"]["prompt_tokens"] == 7


def test_scores_are_numbered_and_numbers_of_json():
    found = [Score(i, [-math.inf] * 2, [False] * 2, 3, 1) for i in range(2)]
    reply = scores([[0, 1], [1, 1]], found)
    assert [score["index"] for score in reply["scores"]] == [0, 1]
    assert [score["log_prob"] for score in reply["scores"]] == [-2 * 9999.0] * 2
    assert reply["scores"][0]["cut"] == 3
    assert "top_logprobs" not in reply["scores"][0]


def test_a_score_for_each_continuation():
    with pytest.raises(ValueError, match="argument"):
        scores([[0], [1]], [Score(0, [-0.5], [True], 0, 1)])


def test_tokens_are_vllms_reply():
    assert tokenize_reply([0, 2], 4096) == {"tokens": [0, 2], "count": 2, "max_model_len": 4096}
    assert tokenize_reply([0, 2], 4096, TEXTS.__getitem__)["token_strs"] == ["a", r"\xe6\xa8"]
    assert tokenize_reply([], 4096, TEXTS.__getitem__)["token_strs"] == []
    assert detokenize_reply("a") == {"prompt": "a"}


def test_lm_eval_takes_the_replies_of_a_tokenizer(monkeypatch):
    """Its own client, with the transport put aside."""
    info = tokenizer_info_reply(bos=None, eos="</s>", window=4096, template="{{ messages }}")
    replies = {
        "/tokenizer_info": info,
        "/tokenize": tokenize_reply([0, 2], 4096),
        "/detokenize": detokenize_reply("a"),
    }

    class Response:
        status_code = 200

        def __init__(self, data):
            self.json = lambda: data

        def raise_for_status(self):
            pass

    def request(self, method, url, **kwargs):
        return Response(replies[url.removeprefix("http://here")])

    monkeypatch.setattr("requests.Session.request", request)
    assert check_remote_tokenizer_support("http://here/v1/completions")
    tokenizer = RemoteTokenizer("http://here/v1/completions")
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("</s>", None)
    assert tokenizer.encode("a") == [0, 2]
    assert tokenizer.decode([0]) == "a"
    assert tokenizer.apply_chat_template([]) == "[]"
