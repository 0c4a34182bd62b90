"""Tokenizer, chat layout and settings of imported models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_json_tokenizers as made
import pytest

from bc2.convert.importing.model_folder import ModelFolder
from bc2.convert.importing.speech import Speech, read_speech
from bc2.errors import DataError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def speech(
    folder: Path, tokenizer: bytes, files: dict[str, Any] | None = None, *,
    rows: int = 1300, layout: str | None = None, family: str = "llama",
) -> Speech:  # fmt: skip
    (folder / "tokenizer.json").write_bytes(tokenizer)
    for name, value in (files or {}).items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_text(text)
    shape = ModelConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1
    )
    return read_speech(ModelFolder(folder), shape, family, layout)


def test_a_model_without_more_than_a_tokenizer(tmp_path: Path) -> None:
    found = speech(tmp_path, made.qwen_like())
    assert found.chat is None
    assert found.defaults == GenerationDefaults()
    assert list(found.files) == ["tokenizer.json"]
    assert found.files["tokenizer.json"] == made.qwen_like()


def test_what_a_tokenizer_does_not_give_back_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speech(tmp_path, made.qwen_like()).tokenizer.lost
    said = " ".join(capsys.readouterr().err.split())
    assert "does not give back" in said
    assert "accents as characters of their own" in said  # its normalizer is NFC
    assert speech(tmp_path, made.llama3_like(), family="llama").tokenizer.exact
    assert "give back" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["jinja", "config", "several"])
def test_a_template_from_each_place(tmp_path: Path, where: str) -> None:
    files: dict[str, Any] = {
        "jinja": {"chat_template.jinja": CHATML},
        "config": {"tokenizer_config.json": {"chat_template": CHATML}},
        "several": {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tool_use", "template": "x"}, {"name": [], "template": "x"}, "x",
                    {"name": "default", "template": CHATML},
                ]
            }
        },
    }[where]  # fmt: skip
    found = speech(tmp_path, made.qwen_like(), files)
    assert found.chat is not None
    ids = found.chat.prompt([{"role": "user", "content": "hi <|im_end|>"}])
    names = found.tokenizer.special_ids
    assert ids.count(names["<|im_end|>"]) == 1
    assert names["<|im_end|>"] in found.chat.end_ids
    assert list(found.files) == ["tokenizer.json", "chat.json"]


def test_a_template_that_changes_earlier_turns_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = "{{ messages | length }}" + CHATML
    found = speech(tmp_path, made.qwen_like(), {"chat_template.jinja": changing})
    assert found.chat is None
    said = " ".join(capsys.readouterr().err.split())
    assert "no chat layout" in said
    assert "--chat-layout NAME" in said
    named = speech(tmp_path, made.qwen_like(), layout="chatml")
    assert named.chat is not None
    assert named.chat.name == "chatml"
    assert speech(tmp_path, made.qwen_like(), layout="none").chat is None


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (
            {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.85,
             "repetition_penalty": 1.05, "max_new_tokens": 2048, "user_token_id": None},
            {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05,
             "max_new_tokens": 2048},
        ),
        ({"do_sample": False, "temperature": 0.3}, {"temperature": 0.0}),
        ({"temperature": 0.3, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"eos_token_id": [1200, 1202]}, {"end_ids": (1202,)}),
        ({"eos_token_id": 1202}, {"end_ids": (1202,)}),
        ({"max_new_tokens": 4096}, {}),
    ],
)  # fmt: skip
def test_settings_of_generation(
    tmp_path: Path, generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = speech(
        tmp_path, made.qwen_like(), {"generation_config.json": generation}, layout="none"
    )
    assert found.tokenizer.special_ids["<|endoftext|>"] == found.tokenizer.eos_id == 1200
    assert found.defaults == GenerationDefaults(**expected)


def test_the_end_that_the_tokenizer_names_is_one(tmp_path: Path) -> None:
    """Qwen's chat models end with ``<|im_end|>``, their documents with ``<|endoftext|>``."""
    names = {"eos_token": {"content": "<|im_end|>", "special": True}}
    found = speech(tmp_path, made.qwen_like(), {"tokenizer_config.json": names})
    assert found.defaults.end_ids == (found.tokenizer.special_ids["<|im_end|>"],)


@pytest.mark.parametrize(
    ("generation", "match"),
    [
        ({"eos_token_id": 5000}, "eos_token_id 5000 is no token"),
        ({"eos_token_id": True}, "eos_token_id True is no token"),
        ({"eos_token_id": [1200, "x"]}, "eos_token_id x is no token"),
        ({"do_sample": True, "temperature": -1.0}, "temperature: .*, not -1.0"),
        ({"do_sample": True, "top_k": "many"}, "top_k"),
    ],
)
def test_impossible_settings(tmp_path: Path, generation: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        speech(tmp_path, made.qwen_like(), {"generation_config.json": generation})
    assert (caught.value.where or "").endswith("generation_config.json")


def test_more_ids_than_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the tokenizer has 1,2\d\d ids, .* 1,100 rows"):
        speech(tmp_path, made.qwen_like(), rows=1100)


def test_a_beginning_that_two_files_say_differently(tmp_path: Path) -> None:
    assert speech(tmp_path, made.llama3_like(), layout="none").tokenizer.begin_ids
    for begins, tokenizer in ((False, made.llama3_like()), (True, made.qwen_like())):
        with pytest.raises(DataError, match="by add_bos_token, and not by"):
            speech(tmp_path, tokenizer, {"tokenizer_config.json": {"add_bos_token": begins}})
    with pytest.raises(DataError, match="add_eos_token"):
        speech(tmp_path, made.qwen_like(), {"tokenizer_config.json": {"add_eos_token": True}})


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer") as caught:
        read_speech(
            ModelFolder(tmp_path),
            ModelConfig(
                vocab_size=9, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1
            ),
            "qwen2",
            None,
        )
    assert "save_pretrained" in (caught.value.todo or "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<new>": 1250}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1250": {"content": "<new>"}}}),
    ],
)
def test_a_token_that_is_added_beside_the_tokenizer(
    tmp_path: Path, file: str, content: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"'<new>' is not in tokenizer\.json") as caught:
        speech(tmp_path, made.qwen_like(), {file: content})
    assert caught.value.where == str(tmp_path / file)


def test_tokens_that_are_named_again_beside_the_tokenizer(tmp_path: Path) -> None:
    added = json.loads(made.qwen_like())["added_tokens"]
    files = {
        "added_tokens.json": {one["content"]: one["id"] for one in added},
        "tokenizer_config.json": {"added_tokens_decoder": {str(one["id"]): one for one in added}},
    }
    assert speech(tmp_path, made.qwen_like(), files).tokenizer.vocab_size > 0


def test_ends_are_those_of_the_configuration_if_no_other_file_says_them(tmp_path: Path) -> None:
    files: dict[str, Any] = {"config.json": {"eos_token_id": [5, 6, 10**6]}}
    assert speech(tmp_path, made.qwen_like(), files).defaults.end_ids == (5, 6)
    files["generation_config.json"] = {"eos_token_id": 7}
    assert speech(tmp_path, made.qwen_like(), files).defaults.end_ids == (7,)


def test_settings_of_generation_that_are_not_here_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = {"no_repeat_ngram_size": 3, "num_beams": 1, "min_new_tokens": None}
    speech(tmp_path, made.qwen_like(), {"generation_config.json": generation})
    said = capsys.readouterr().err
    assert "no_repeat_ngram_size = 3 in generation_config.json has no effect" in said
    assert "num_beams" not in said
    assert "min_new_tokens" not in said
