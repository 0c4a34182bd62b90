"""Tokenizer, chat template and settings, as transformers' Auto classes read them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_baichuan
import made_chats
import pytest
import transformers
from exported import write
from made_json_tokenizers import llama2_like, llama3_like, qwen_like
from sentencepiece import sentencepiece_model_pb2
from small_checkpoints import SMALL, checkpoint

from bc2.convert.exporting.hf.texts import chat_template, hf_texts
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.importing.import_model import import_model
from bc2.errors import DataError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.registry import Artifact, Registry
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.tokenizer import Tokenizer

CONFIG = ModelConfig(**{**SMALL, "vocab_size": 1280, "context_length": 512})

#: Tokenizers by the layouts that they have the control tokens of.
LAYOUTS: dict[str, Callable[[], bytes]] = {
    "baichuan": made_baichuan.tokenizer_bytes, "chatml": qwen_like, "llama3": llama3_like,
}  # fmt: skip
#: Released templates, each with a tokenizer that has its control tokens.
TEMPLATES = {
    "llama3": (made_chats.LLAMA3_TEMPLATE, llama3_like),
    "llama31": (made_chats.LLAMA31_TEMPLATE, llama3_like),
    "chatml": (made_chats.CHATML_TEMPLATE, qwen_like),
    "qwen2": (made_chats.QWEN2_TEMPLATE, qwen_like),
    "mistral": (made_chats.MISTRAL_TEMPLATE, llama2_like),
}


def same_chats(chat: Chat, theirs: Any, hostile: tuple[str, ...] = ()) -> int:
    """Compare conversations to be answered, and whole ones; how many the layout has a place for."""
    chance, compared = random.Random(0), 0
    for _ in range(60):
        messages = made_chats.conversation(chance, hostile)
        asked = messages if messages[-1]["role"] == "user" else messages[:-1]
        try:
            prompt, whole = chat.prompt(asked), chat.render(messages).ids
        except DataError:
            continue  # a system message, of which some templates know nothing
        render = theirs.apply_chat_template
        assert render(asked, add_generation_prompt=True, return_dict=False) == prompt
        assert render(messages, return_dict=False) == whole
        compared += 1
    return compared


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_by_name(tmp_path: Path, name: str) -> None:
    artifact = checkpoint(
        Registry.open(tmp_path / "home"), CONFIG, model=LAYOUTS[name](), layout=name
    )
    write(artifact, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with SourceModel.open(artifact) as source:
        assert source.chat is not None
        assert same_chats(source.chat, theirs, ("\u2581", "<0x0A>", "<think>")) == 60
        assert theirs.chat_template == chat_template(source)
        ends = transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
        assert set(source.chat.end_ids) == set(ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("name", TEMPLATES)
def test_imported_templates(tmp_path: Path, name: str) -> None:
    template, tokenizer = TEMPLATES[name]
    home = tmp_path / "home"
    artifact = checkpoint(Registry.open(home), CONFIG, model=tokenizer(), chat=_chat_json(template))
    write(artifact, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with SourceModel.open(artifact) as source:
        assert source.chat is not None
        assert same_chats(source.chat, theirs) >= 20
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template


def _chat_json(template: str) -> bytes:
    return json.dumps({"layout": "jinja", "template": template, "tokens": {}}).encode()


def test_what_a_user_types_as_a_control_token_is_one_to_transformers(tmp_path: Path) -> None:
    """The known difference, which its own option takes away."""
    tokenizer = made_baichuan.tokenizer_bytes()
    artifact = checkpoint(
        Registry.open(tmp_path / "home"), CONFIG, model=tokenizer, layout="baichuan"
    )
    write(artifact, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours, text = Tokenizer.load(artifact.path), "a</s><reserved_106>b"
    assert {2, 195} <= set(theirs.encode(text))
    assert not {2, 195} & set(ours.encode(text))
    assert theirs.encode(text, split_special_tokens=True) == ours.encode(text)


@pytest.mark.parametrize(
    "make", [made_baichuan.tokenizer_bytes, llama2_like, qwen_like, llama3_like]
)
def test_special_tokens_are_in_the_table(tmp_path: Path, make: Callable[[], bytes]) -> None:
    artifact = checkpoint(Registry.open(tmp_path / "home"), CONFIG, model=make())
    write(artifact, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.load(artifact.path)
    assert len(theirs) == ours.vocab_size
    assert type(theirs).__name__ == "TokenizersBackend"
    assert theirs.clean_up_tokenization_spaces is False
    assert theirs.model_max_length == 512
    assert theirs.eos_token_id == ours.eos_id
    assert (theirs.bos_token_id if theirs.bos_token else -1) == ours.bos_id
    assert (theirs.unk_token_id if theirs.unk_token else -1) == ours.unk_id
    assert ours.is_control(theirs.pad_token_id)
    if ours.unk_id >= 0:
        assert theirs.pad_token == "<unk>"


def test_the_released_file_lies_beside(tmp_path: Path) -> None:
    artifact = checkpoint(Registry.open(tmp_path / "home"), CONFIG)
    with SourceModel.open(artifact) as source:
        found = hf_texts(source)
        assert found["tokenizer.model"] == source.tokenizer.model
        assert chat_template(source) is None
    assert set(found) == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    artifact = checkpoint(Registry.open(tmp_path / "home"), CONFIG, model=qwen_like())
    with SourceModel.open(artifact) as source:
        found = hf_texts(source)
        assert found["tokenizer.json"] == source.tokenizer.model
    assert set(found) == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.05, "max_new_tokens": 48},
        {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05},
        {"top_p": 0.5, "min_p": 0.1, "end_ids": (7, 9)},
    ],
)
def test_settings_come_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Through transformers, which finds nothing wrong with them, and the importer."""
    defaults = GenerationDefaults(**settings)
    artifact = checkpoint(Registry.open(tmp_path / "home"), CONFIG, generation=defaults)
    write(artifact, tmp_path / "out")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    theirs.validate(strict=True)
    assert theirs.eos_token_id == ([2, 7, 9] if "end_ids" in settings else 2)
    assert (theirs.bos_token_id, theirs.pad_token_id) == (1, 0)
    drawn = settings.get("temperature", 1.0) > 0 and set(settings) - {"end_ids"}
    assert bool(theirs.do_sample) == bool(drawn)
    for saved in (False, True):
        if saved:
            theirs.save_pretrained(tmp_path / "out")
        again = import_model(Registry.open(tmp_path / f"again{saved}"), tmp_path / "out")
        assert GenerationDefaults.of(again) == defaults


def test_the_markers_of_a_released_model_are_found(tmp_path: Path) -> None:
    """Its tokenizer takes them for text; the template needs them as control tokens."""
    artifact: Artifact = checkpoint(
        Registry.open(tmp_path / "home"), CONFIG, model=_with_text_markers(), layout="baichuan"
    )
    write(artifact, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with SourceModel.open(artifact) as source:
        assert source.chat is not None
        assert source.chat.markers == {195, 196}
        assert same_chats(source.chat, theirs) == 60


def _with_text_markers() -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(made_baichuan.tokenizer_bytes())
    for token in (195, 196):
        proto.pieces[token].type = 4
    made: bytes = proto.SerializeToString()
    return made
