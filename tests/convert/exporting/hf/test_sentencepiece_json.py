"""tokenizer.json of SentencePiece models: the ids that bc2 gives, of any text."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import made_baichuan
import made_json_tokenizers
import pytest
import sentencepiece
import tokenizers
from hard_strings import hard_strings, real_texts, run
from sentencepiece import sentencepiece_model_pb2

from bc2.convert.exporting.hf.sentencepiece_json import tokenizer_json
from bc2.errors import UsageError
from bc2.tokenizer.tokenizer import Tokenizer

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute()
RELEASED = ("baichuan_sp", "baichuan7b_sp_rebuilt", "internlm_sp", "llama2_sp")


@cache
def texts() -> list[str]:
    return made_json_tokenizers.training_texts()[-9:]


@cache
def trained(**other: Any) -> bytes:
    """A small model of SentencePiece's own trainer."""
    out = io.BytesIO()
    lines = [line for text in texts() for line in text.split("\n") if line]
    settings = {
        "vocab_size": 700, "model_type": "bpe", "byte_fallback": True, "minloglevel": 3,
        "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "character_coverage": 0.98, "hard_vocab_limit": False,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, **(settings | other)
    )
    return out.getvalue()


def check(model: bytes, strings: list[str]) -> tokenizers.Tokenizer:
    """The library's tokenizer, which gave the ids of bc2 for each string."""
    ours = Tokenizer(model)
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(model).decode())
    names = [name for name in ours.special_ids if name]
    for text in strings:
        if not any(name in text for name in names):
            assert theirs.encode(text).ids == ours.encode(text), text
    return theirs


def test_a_trained_tokenizer_and_its_text_comes_back() -> None:
    model = made_baichuan.tokenizer_bytes()
    ours, strings = Tokenizer(model), hard_strings(texts(), 2000)
    assert ours.exact
    theirs = check(model, strings)
    for text in strings[:200]:
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.get_vocab_size() == ours.vocab_size
    special = theirs.get_added_tokens_decoder()
    assert {token: one.content for token, one in special.items()} == {
        token: name for name, token in ours.special_ids.items()
    }
    assert all(one.special for one in special.values())


OWN = ("<ud>", "\u2581ud\u2581", "abc", "class ")
#: Fallback to bytes, a prefix, spaces dropped, user-defined pieces; some of those are refused.
FOREIGN = [
    (fallback, prefix, drops, own)
    for fallback, prefix, drops, own in itertools.product(*[(True, False)] * 3, ((), OWN))
    if not own or prefix or (fallback and not drops)
]


@pytest.mark.parametrize(("fallback", "prefix", "drops", "own"), FOREIGN)
def test_foreign_ones(fallback: bool, prefix: bool, drops: bool, own: tuple[str, ...]) -> None:
    model = trained(
        byte_fallback=fallback, add_dummy_prefix=prefix, remove_extra_whitespaces=drops,
        user_defined_symbols=",".join(own),
    )  # fmt: skip
    strings = hard_strings(texts(), 300)
    check(model, [*strings, *(f"a {piece}{piece} b{piece}" for piece in own)])


def spec_of(model: bytes, **changed: Any) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for name, value in changed.items():
        setattr(proto.trainer_spec, name, value)
    made: bytes = proto.SerializeToString()
    return made


def test_pieces_of_one_score_are_taken_from_the_left() -> None:
    """As the tabs of Baichuan's later tokenizers: five are three and two."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained())
    assert not any("z" in piece.piece for piece in proto.pieces)
    for text in ("z", "zz", "zzz"):
        proto.pieces.add(piece=text, score=0.0, type=1)
    model: bytes = proto.SerializeToString()
    ours = Tokenizer(model)
    assert [ours.piece_of(i) for i in ours.encode("zzzzz")] == ["zzz", "zz"]
    check(model, ["z" * count for count in range(40)] + ["azzzzb zz z" * 3])


def test_pieces_that_no_text_becomes_keep_their_ids() -> None:
    """With a space of their own, which SentencePiece never sees, or a NUL."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained())
    first = len(proto.pieces)
    for text in ("\u2581\n \n", "x y", "\x00"):
        proto.pieces.add(piece=text, score=1.0, type=4)
    model: bytes = proto.SerializeToString()
    theirs = check(model, ["\n \n \n", "x y", " \n \n", "\x00", "a\x00", "x\u2581y"])
    assert theirs.decode([first]) == " \n \n"
    assert theirs.decode([first + 1]) == "x y"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: trained(model_type="unigram"), "byte-pair encoding"),
        (lambda: trained(normalization_rule_name="nmt_nfkc"), "normalises characters"),
        (lambda: spec_of(trained(), treat_whitespace_as_suffix=True), "end with a space"),
        (lambda: _with_unused(), "unused pieces"),
        (
            lambda: trained(remove_extra_whitespaces=True, user_defined_symbols="<ud>"),
            "user-defined pieces",
        ),
    ],
)
def test_what_the_library_has_not_got_is_refused(model: Any, why: str) -> None:
    with pytest.raises(UsageError) as error:
        tokenizer_json(model())
    assert why in error.value.what
    assert "--to baichuan" in str(error.value.todo)


def _with_unused() -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained())
    proto.pieces[-1].type = 5
    made: bytes = proto.SerializeToString()
    return made


def test_markers_of_a_layout_are_special() -> None:
    """Pieces that a released tokenizer takes for text, and a chat layout for turns."""
    model = trained(user_defined_symbols="<reserved_1>")
    token = Tokenizer(model).id_of("<reserved_1>")
    plain, marked = (
        json.loads(tokenizer_json(model, markers)) for markers in (frozenset(), frozenset([token]))
    )
    found = [
        next(one["special"] for one in spec["added_tokens"] if one["id"] == token)
        for spec in (plain, marked)
    ]
    assert found == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", *RELEASED])
def test_10_000_real_strings(name: str) -> None:
    """In both languages and code, and as many runs that are merged in many ways."""
    if not (DATA / "corpus").is_dir() or not (
        name == "trained" or (DATA / "models" / name).is_dir()
    ):
        pytest.skip("needs shared/data, or BC2_TEST_DATA")
    model = made_baichuan.tokenizer_bytes()
    if name != "trained":
        model = (DATA / "models" / name / "tokenizer.model").read_bytes()
    chance = random.Random(7)
    runs = [run(chance) for _ in range(10_000)]
    check(model, [*hard_strings(real_texts(DATA / "corpus"), 10_000), *runs])
