import json

import pytest

from bc2.errors import DataError
from bc2.generate.prompts import STDIN, Prompt, prompt_requests, read_prompts
from bc2.generate.sampling.seeds import prompt_seed
from bc2.generate.sampling_config import SamplingConfig


class Letters:
    """A tokenizer of bytes."""

    vocab_size = 256

    def encode(self, text):
        return list(text.encode("utf-8", "surrogatepass"))

    encode_whole = encode


def texts(file):
    return [prompt.text for prompt in read_prompts(file)]


def test_a_line_is_read_when_it_is_asked_for(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\nno JSON\n')
    prompts = read_prompts(tmp_path / "p.jsonl")
    assert next(prompts).text == "one"
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        next(prompts)


def test_lines_end_where_they_do_and_keep_their_spaces(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeff one \r\n\n  \ntwo\u2028three\x0c\u0085\n".encode())
    assert texts(tmp_path / "p.txt") == [" one ", "two\u2028three\x0c\u0085"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ('\n{"prompt": "one", "n": 2}\n{"prompt": "two"}\n', ["one", "two"]),
        ("one\n{2}\n", ["one", "{2}"]),
        ("{one}\n", ["{one}"]),
        ("[1]\n", ["[1]"]),
    ],
)
def test_standard_input_is_json_lines_if_its_first_line_is_an_object(
    tmp_path, monkeypatch, data, found
):
    (tmp_path / "in").write_text(data)
    with (tmp_path / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert texts(STDIN) == found


def test_empty_standard_input(tmp_path, monkeypatch):
    (tmp_path / "in").touch()
    with (tmp_path / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(DataError, match=r"no prompt in the file \(stdin\)"):
            texts(STDIN)


def test_settings_of_a_line_go_before_the_common_ones(tmp_path):
    own = {"temperature": 0, "stop": "x", "stop_ids": [1, 2], "logprobs": None, "seed": 9}
    lines = [{"prompt": "a", **own}, {"prompt": "b", "stop": ["y", "z"]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = SamplingConfig(temperature=0.5, n=3, logprobs=1, stop_ids=(7,), seed=4)
    one, two = prompt_requests(read_prompts(tmp_path / "p.jsonl"), Letters(), common)
    assert one.settings == common.model_copy(
        update={"temperature": 0.0, "stop": ("x",), "stop_ids": (1, 2), "logprobs": None, "seed": 9}
    )
    assert two.settings == common.model_copy(update={"stop": ("y", "z"), "seed": prompt_seed(4, 1)})
    assert [one.where, two.where] == [f"{tmp_path / 'p.jsonl'}:{line}" for line in (1, 2)]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"n": 0}, "n: input should be greater than 0, not 0"),
        ({"n": True}, "n: input should be a valid integer, not True"),
        ({"temperature": "hot"}, "temperature: input should be a valid number, not 'hot'"),
        ({"stop": 1}, "stop: input should be a valid list, not 1"),
        ({"stop": [1]}, "stop.0: input should be a valid string, not 1"),
        ({"stop": [""]}, "a stop text is empty"),
        ({"stop": ["a", ""]}, "a stop text is empty"),
        ({"stop_ids": [-1]}, "stop id -1 is outside the vocabulary of 256"),
        ({"stop_ids": [256]}, "stop id 256 is outside the vocabulary of 256"),
    ],
)
def test_wrong_settings_of_a_line(own, said):
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    with pytest.raises(DataError) as caught:
        list(prompt_requests([Prompt("a", own, "p.jsonl:7")], Letters(), SamplingConfig()))
    assert said in caught.value.what
    assert caught.value.where == "p.jsonl:7"


def test_half_a_surrogate_pair_is_read_and_can_be_printed(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\ud800"}\n')
    (one,) = prompt_requests(read_prompts(tmp_path / "p.jsonl"), Letters(), SamplingConfig())
    assert bytes(one.prompt) == b"a\xed\xa0\x80"
    assert one.text == "a\ufffd"
