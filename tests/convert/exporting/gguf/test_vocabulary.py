"""Vocabularies of GGUF files against the libraries that tokenizers are made for."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_baichuan
import made_chats
import made_json_tokenizers
import pytest
import sentencepiece
from gguf import GGUFReader, TokenType
from small_checkpoints import checkpoint, shape

from bc2.convert.exporting.gguf.json_vocabulary import json_vocabulary
from bc2.convert.exporting.gguf.plan import FILE, plan_gguf
from bc2.convert.exporting.gguf.sentencepiece_vocabulary import sentencepiece_vocabulary
from bc2.convert.exporting.gguf.vocabulary import typed_pieces
from bc2.convert.exporting.hf.sentencepiece_json import tokenizer_json
from bc2.convert.exporting.source_model import SourceModel
from bc2.errors import UsageError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.registry import Registry
from bc2.tokenizer.chat_file import chat_from_json
from bc2.tokenizer.tokenizer import Tokenizer


def trained(**options: Any) -> Tokenizer:
    """A SentencePiece model of a few lines."""
    lines = made_json_tokenizers.training_texts()[0].split("\n")[:300]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2,
        **{
            "vocab_size": 400, "model_type": "bpe", "byte_fallback": True,
            "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options,
        },
    )  # fmt: skip
    return Tokenizer(model.getvalue())


# -- SentencePiece ----------------------------------------------------------------------------


def test_pieces_scores_and_types_of_sentencepiece() -> None:
    ours = Tokenizer(made_baichuan.tokenizer_bytes())
    there = sentencepiece.SentencePieceProcessor()
    there.LoadFromSerializedProto(ours.model)
    made = sentencepiece_vocabulary(ours, 650)
    ids = list(range(there.get_piece_size()))
    assert (made.model, made.pre, made.space_prefix) == ("llama", "default", False)
    assert list(made.pieces[:640]) == there.id_to_piece(ids)
    assert made.scores is not None
    assert list(made.scores[:640]) == [there.get_score(i) for i in ids]
    kinds = {
        TokenType.CONTROL: there.is_control(ids), TokenType.UNKNOWN: there.is_unknown(ids),
        TokenType.BYTE: there.is_byte(ids), TokenType.UNUSED: there.is_unused(ids),
    }  # fmt: skip
    for kind, right in kinds.items():
        assert [one == kind for one in made.types[:640]] == right
    assert set(made.types[640:]) == {TokenType.UNUSED}
    assert len(set(made.pieces)) == len(made.pieces) == len(made.types) == len(made.scores) == 650
    assert made.notes == ("llama.cpp reads '▁' (U+2581) in a text as a space",)


def test_markers_that_are_ordinary_pieces_are_found_in_templates() -> None:
    ours = Tokenizer(made_baichuan.tokenizer_bytes())
    made = sentencepiece_vocabulary(ours, 640, frozenset({500, 195}))
    assert made.types[500] == made.types[195] == TokenType.CONTROL
    assert made.types[501] == TokenType.NORMAL


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"model_type": "unigram"}, "has no merges"),
        ({"byte_fallback": False}, "unknown characters as bytes"),
        ({"treat_whitespace_as_suffix": True}, "before a word"),
    ],
)
def test_other_models_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        sentencepiece_vocabulary(trained(**options), 400)
    assert "--to" in str(caught.value.todo)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text, and llama.cpp does not"),
        ({"remove_extra_whitespaces": True}, "leaves out spaces"),
        ({"user_defined_symbols": ["<tab>", " \n"]}, "puts a space after them: '<tab>', ' \\n'"),
        (
            {"user_defined_symbols": ["<tab>"], "add_dummy_prefix": False},
            "the longest first, not the leftmost: '<tab>'",
        ),
    ],
)
def test_differences_are_said_of_those_that_have_them(options: dict[str, Any], what: str) -> None:
    notes = sentencepiece_vocabulary(trained(**options), 400).notes
    assert [note for note in notes if what in note], notes
    assert not [note for note in sentencepiece_vocabulary(trained(), 400).notes if what in note]


def test_pieces_that_the_user_defined_are_looked_for_with_spaces() -> None:
    made = sentencepiece_vocabulary(trained(user_defined_symbols=["▁▁\n"]), 400)
    assert made.pieces[list(made.types).index(TokenType.USER_DEFINED)] == "  \n"
    assert made.space_prefix


def test_control_pieces_that_merges_make() -> None:
    pieces, types = ["<s>", "<s", "</s>", "<0x41>", "<0x41", "a"], [3, 1, 3, 6, 1, 1]
    assert typed_pieces(pieces, types) == ["<s>", "<0x41>"]
    assert typed_pieces(["<s>", "</s>", "s"], [3, 3, 1]) == []


# -- tokenizer.json ---------------------------------------------------------------------------


def changed(model: bytes, change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    spec = json.loads(model)
    change(spec)
    return Tokenizer(json.dumps(spec).encode())


def test_byte_level_pieces_and_merges_as_they_are() -> None:
    ours = Tokenizer(made_json_tokenizers.llama3_like())
    spec = json.loads(ours.model)
    made = json_vocabulary(ours, 1280)
    assert (made.model, made.pre, made.space_prefix) == ("gpt2", "llama-bpe", False)
    for piece, token in spec["model"]["vocab"].items():
        assert (made.pieces[token], made.types[token]) == (piece, TokenType.NORMAL)
    assert list(made.merges) == [" ".join(pair) for pair in spec["model"]["merges"]]
    for one in spec["added_tokens"]:
        assert made.pieces[one["id"]] == one["content"]
        assert made.types[one["id"]] == TokenType.CONTROL
    assert len(set(made.pieces)) == 1280
    assert made.notes == ()


def test_added_tokens_that_are_text() -> None:
    made = json_vocabulary(Tokenizer(made_json_tokenizers.qwen_like()), 1280)
    kinds = dict(zip(made.pieces, made.types, strict=True))
    assert made.pre == "qwen2"
    assert kinds["<think>"] == TokenType.USER_DEFINED
    assert kinds["<|im_end|>"] == TokenType.CONTROL
    assert made.notes == (
        "llama.cpp does not normalise text (NFC): do it before",
        "llama.cpp takes tokens for control that text becomes here: '<|fim_prefix|>'",
    )


def _cuts_by(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    last = {**WORDS, "use_regex": False}
    cuts = {"type": "Sequence", "pretokenizers": [*steps, last]}
    return lambda spec: spec.update(pre_tokenizer=cuts) or spec["model"].update(ignore_merges=False)


def _by(expression: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": False,
    }  # fmt: skip


WORDS = {
    "type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([_by(made_json_tokenizers.LLAMA3)], "smaug-bpe"),
        ([_by(made_json_tokenizers.QWEN)], "qwen2"),
        ([WORDS], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, WORDS], "smollm"),
    ],
)
def test_what_cuts_text_is_recognised(steps: list[dict[str, Any]], name: str) -> None:
    ours = changed(made_json_tokenizers.llama3_like(), _cuts_by(*steps))
    assert json_vocabulary(ours, 1280).pre == name


@pytest.mark.parametrize(
    "steps",
    [
        [_by(made_json_tokenizers.LLAMA3 + "|x")], [_by(made_json_tokenizers.QWEN, "Removed")], [],
        [{"type": "Digits", "individual_digits": False}, WORDS], [_by(r"\s+"), WORDS],
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_refused(steps: list[dict[str, Any]]) -> None:
    ours = changed(made_json_tokenizers.llama3_like(), _cuts_by(*steps))
    with pytest.raises(UsageError, match="does not cut text as this"):
        json_vocabulary(ours, 1280)


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_fallback_with_the_merges_of_sentencepiece(prefix: bool) -> None:
    """By way of tokenizer.json the vocabulary is that of the model."""
    model = trained(add_dummy_prefix=prefix).model
    right = sentencepiece_vocabulary(Tokenizer(model), 400)
    made = json_vocabulary(Tokenizer(tokenizer_json(model)), 400)
    assert (made.model, made.pieces, made.types) == ("llama", right.pieces, right.types)
    assert made.space_prefix is right.space_prefix is prefix
    assert made.scores is not None
    assert right.scores is not None
    normal = [i for i in range(400) if right.types[i] == TokenType.NORMAL]
    long = [i for i in normal if len(right.pieces[i]) > 1]
    assert len(long) > 50
    by_score = [sorted(long, key=lambda i: one.scores[i]) for one in (made, right)]
    assert by_score[0] == by_score[1]


def test_merges_that_name_one_way_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="merges every pair of pieces that makes"):
        json_vocabulary(Tokenizer(made_json_tokenizers.llama2_like()), 900)


def test_text_that_is_changed_otherwise_is_refused() -> None:
    def lowered(spec: dict[str, Any]) -> None:
        spec["normalizer"]["normalizers"].append({"type": "Lowercase"})

    ours = changed(tokenizer_json(trained().model), lowered)
    with pytest.raises(UsageError, match=r"does not change text as this.*Lowercase"):
        json_vocabulary(ours, 400)


# -- of a model -------------------------------------------------------------------------------


def facts_of(source: SourceModel, folder: Path) -> dict[str, Any]:
    plan = plan_gguf(source, None, 1)
    plan.write(folder, source, plan, lambda count: None)
    return {name: one.contents() for name, one in GGUFReader(folder / FILE).fields.items()}


def test_ends_and_template_of_ours(tmp_path: Path) -> None:
    wanted = GenerationDefaults(end_ids=(2, 7))
    artifact = checkpoint(Registry.open(tmp_path / "home"), generation=wanted, layout="baichuan")
    with SourceModel.open(artifact) as source:
        facts = facts_of(source, tmp_path)
        assert source.chat is not None
        assert facts["tokenizer.chat_template"] == source.chat.template
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 0, "eot": 7}
    assert {name: facts[f"tokenizer.ggml.{name}_token_id"] for name in ids} == ids
    assert facts["tokenizer.ggml.add_bos_token"] is False
    assert facts["tokenizer.ggml.add_space_prefix"] is False
    assert len(facts["tokenizer.ggml.tokens"]) == 640


def test_begin_and_ends_of_llama3(tmp_path: Path) -> None:
    ours = Tokenizer(made_json_tokenizers.llama3_like())
    chat = chat_from_json({"layout": "jinja", "template": made_chats.LLAMA3_TEMPLATE}, ours)
    artifact = checkpoint(
        Registry.open(tmp_path / "home"), shape(vocab_size=1280), layout="baichuan"
    )
    with SourceModel.open(artifact) as source:
        facts = facts_of(dataclasses.replace(source, tokenizer=ours, chat=chat), tmp_path)
    assert facts["tokenizer.ggml.add_bos_token"] is True
    assert facts["tokenizer.ggml.bos_token_id"] == ours.begin_ids[0]
    assert facts["tokenizer.ggml.eot_token_id"] == ours.id_of("<|eot_id|>")
    assert facts["tokenizer.chat_template"] == made_chats.LLAMA3_TEMPLATE


def test_more_ends_than_llama_cpp_is_told_of(tmp_path: Path) -> None:
    wanted = GenerationDefaults(end_ids=(3, 4, 5))
    artifact = checkpoint(Registry.open(tmp_path / "home"), generation=wanted, layout="baichuan")
    with SourceModel.open(artifact) as source:
        notes = plan_gguf(source, None, 1).notes
    assert [note for note in notes if "not of '<control_2>'" in note]


def test_fewer_rows_than_pieces_are_refused(tmp_path: Path) -> None:
    artifact = checkpoint(
        Registry.open(tmp_path / "home"), shape(vocab_size=600), layout="baichuan"
    )
    with (
        SourceModel.open(artifact) as source,
        pytest.raises(UsageError, match="640 pieces, the model 600 rows"),
    ):
        plan_gguf(source, None, 1)
