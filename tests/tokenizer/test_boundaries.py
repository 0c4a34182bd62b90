"""Texts cut at every place that is called safe, against the same texts encoded whole."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from bc2.tokenizer.boundaries import Boundaries
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import options

MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"

#: What encoders treat in their own ways: spaces, lines, digits, scripts, bytes, what is apart.
ALPHABET = [
    *"  \n\n\tab(e)s12３.,:=_-天地玄黄，。é\u0301",
    *["\u2581", "\ud800", "\0", "\U0010fffe", "👩‍👩", "self", "\n\n    ", "return ", "the ", "<s>"],
]
pieces_of_text = st.lists(st.sampled_from(ALPHABET) | st.text(max_size=3), max_size=40)
anything = pieces_of_text.map("".join)


def model(lines: list[str], **changes: Any) -> Tokenizer:
    """A tokenizer of 900 pieces trained with our options, but for some."""
    made = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        **{**options(TokenizerConfig(vocab_size=900)), "hard_vocab_limit": False, **changes},
    )
    return Tokenizer.from_bytes(made.getvalue())


@pytest.fixture(scope="session")
def lines(texts: list[str]) -> list[str]:
    english = [line for text in texts[:6] for line in text.split("\n") if line][:1500]
    chinese = ["天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。第12章", "天地，玄黄。"] * 20
    return english + chinese


@pytest.fixture(scope="session")
def unlike(lines: list[str]) -> dict[str, Tokenizer]:
    """Models whose pieces begin and end where ours never do."""
    return {
        "across spaces": model(lines, split_by_whitespace=False, split_by_unicode_script=False),
        "across numbers": model(lines, split_digits=False, split_by_number=False),
        "suffix": model(lines, treat_whitespace_as_suffix=True),
        "symbols": model(lines, user_defined_symbols=["self", "a b", "\n\n", "b)", "e "]),
        "control": model(lines, control_symbols=["<s>a", "(e)", "天"]),
    }


def check_cuts(tokenizer: Tokenizer, boundaries: Boundaries, text: str) -> int:
    whole = tokenizer.encode(text)
    cuts = [at for at in range(1, len(text)) if boundaries.is_safe(text, at)]
    for at in cuts[:: len(cuts) // 50 + 1]:
        assert tokenizer.encode(text[:at]) + tokenizer.encode(text[at:]) == whole, at
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [i for part in parts for i in tokenizer.encode(part)] == whole
    return len(cuts)


@settings(max_examples=150, deadline=None)
@given(text=anything)
def test_our_models_are_cut_without_a_change(tokenizer: Tokenizer, text: str) -> None:
    check_cuts(tokenizer, Boundaries(tokenizer), text)


@settings(max_examples=60, deadline=None)
@given(text=anything)
@pytest.mark.parametrize(
    "name", ["across spaces", "across numbers", "suffix", "symbols", "control"]
)
def test_models_with_other_pieces_are_cut_without_a_change(
    unlike: dict[str, Tokenizer], name: str, text: str
) -> None:
    boundaries = Boundaries(unlike[name])
    assert boundaries.exist
    check_cuts(unlike[name], boundaries, text)


def test_real_text_has_many_safe_places(tokenizer: Tokenizer, texts: list[str]) -> None:
    boundaries = Boundaries(tokenizer)
    for text in [texts[0][:800], texts[3][:800], texts[-70]]:
        assert check_cuts(tokenizer, boundaries, text) > len(text) // 25


def test_places_inside_of_pieces_are_not_safe(tokenizer: Tokenizer) -> None:
    boundaries = Boundaries(tokenizer)
    assert tokenizer.encode("self") == [tokenizer.id_of("self")]
    assert [at for at in range(5) if boundaries.is_safe("self", at)] == [0, 4]
    assert not boundaries.is_safe("a self", 2)  # the piece is spelled with U+2581
    assert boundaries.is_safe("self self", 4)


def test_the_last_safe_place(tokenizer: Tokenizer) -> None:
    boundaries = Boundaries(tokenizer)
    assert boundaries.last("a self", 6) == 6
    assert boundaries.last("a self", 5) == boundaries.last("a self", 2) == 1
    assert boundaries.last("self", 3) == boundaries.last("", 0) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram"},
        {"model_type": "char"},
        {"add_dummy_prefix": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
    ],
)
def test_other_models_are_not_cut(lines: list[str], changes: dict[str, Any]) -> None:
    boundaries = Boundaries(model(lines[:400], **changes))
    assert not boundaries.exist
    assert [at for at in range(9) if boundaries.is_safe("the self", at)] == [0, 8]
    assert boundaries.last("the self", 7) == 0
    assert boundaries.last("the self", 8) == 8


@pytest.mark.parametrize(("piece", "exist"), [("self", False), ("\t", True)])
def test_models_with_unused_pieces_of_several_characters_are_not_cut(
    tokenizer: Tokenizer, piece: str, exist: bool
) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    proto.pieces[tokenizer.id_of(piece)].type = proto.SentencePiece.UNUSED
    unused = Tokenizer.from_bytes(proto.SerializeToString())
    assert Boundaries(unused).exist is exist


@pytest.mark.parametrize("name", ["baichuan_sp", "internlm_sp", "llama2_sp"])
def test_released_models_are_cut_without_a_change(name: str, texts: list[str]) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    tokenizer = Tokenizer.load(MODELS / name)
    boundaries = Boundaries(tokenizer)
    assert boundaries.exist is tokenizer.exact is (name != "llama2_sp")

    @settings(max_examples=60, deadline=None)
    @given(text=anything)
    def check(text: str) -> None:
        check_cuts(tokenizer, boundaries, text)

    check()
    for text in [texts[1][:800], texts[5][:800], texts[-70]]:
        cuts = check_cuts(tokenizer, boundaries, text)
        assert cuts > len(text) // 25 or not boundaries.exist
