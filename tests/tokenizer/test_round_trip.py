"""What does not come back of a text: what is said, against models that lose it and real Unicode."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from bc2.errors import RunFailed
from bc2.tokenizer import train as train_module
from bc2.tokenizer.boundaries import Boundaries
from bc2.tokenizer.layout import FIXED_PIECES
from bc2.tokenizer.round_trip import KINDS, lost_kinds
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import options, train

MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"

#: Chinese in which one character of 80,000 is a space: less than a coverage of 0.9999 keeps.
SPACELESS = ["天地玄黄宇宙洪荒" * 100] * 100 + ["日 月"]
SPACES = {kind for kind in KINDS if kind.startswith(("spaces", "several spaces"))}


def model_of(lines: list[str], **changes: Any) -> Tokenizer:
    made = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        **{**options(TokenizerConfig(vocab_size=512)), "hard_vocab_limit": False, **changes},
    )
    return Tokenizer(made.getvalue())


@pytest.fixture(scope="module")
def spaceless() -> Tokenizer:
    """A tokenizer as bc2 trained it before the space was required."""
    return model_of(SPACELESS, required_chars="\n\t", vocab_size=FIXED_PIECES + 12)


def test_a_rare_space_is_a_piece() -> None:
    config = TokenizerConfig(vocab_size=512).model_copy(update={"vocab_size": FIXED_PIECES + 15})
    tokenizer = Tokenizer(train(SPACELESS, config).model)
    assert tokenizer.exact
    assert tokenizer.lost == ()
    assert tokenizer.encode(" ") == [tokenizer.id_of("\u2581")]
    assert tokenizer.decode(tokenizer.encode("天 地  ")) == "天 地  "


def test_a_model_without_the_space_is_told_and_encodes_as_before(spaceless: Tokenizer) -> None:
    assert not spaceless.exact
    assert set(spaceless.lost) == SPACES
    native = sentencepiece.SentencePieceProcessor(model_proto=spaceless.model)
    for text in ("天 地", " ", "日  月 "):
        assert spaceless.encode(text) == native.encode(text)
        assert spaceless.decode(spaceless.encode(text)) == text.replace(" ", "\u2581")
        spans = spaceless.spans(text)
        assert [(a, b) for a, b in spans.characters if a == b] == []
    assert spaceless.decode(spaceless.encode("天\ud800地")) == "天\ud800地"
    assert not Boundaries(spaceless).exist


def test_the_ids_are_those_of_before_where_spaces_are_common(texts: list[str]) -> None:
    lines = [line for text in texts[:5] for line in text.split("\n") if line.isascii()]
    new, old = (
        model_of(lines, required_chars=f"\n\t{space}", vocab_size=700) for space in ("\u2581", "")
    )
    assert new.digest != old.digest
    ids = range(old.vocab_size)
    assert new.vocab_size == old.vocab_size
    assert [new.piece_of(i) for i in ids] == [old.piece_of(i) for i in ids]


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, set()),
        ({"add_dummy_prefix": True}, {"the character U+2581", "lone surrogates"}),
        (
            {"remove_extra_whitespaces": True},
            SPACES | {"the character U+2581", "lone surrogates"},
        ),
        (
            {"normalization_rule_name": "nfkc"},
            {
                "other white space",
                "ligatures, full-width and other compatibility characters",
                "characters that NFC replaces",
                "accents as characters of their own",
                "the character U+2581",
                "lone surrogates",
            },
        ),
    ],
)
def test_each_setting_loses_its_kinds(changes: dict[str, Any], lost: set[str]) -> None:
    tokenizer = model_of(["the cat sat on the mat"] * 50, **changes)
    assert set(tokenizer.lost) == lost
    assert tokenizer.exact is not bool(lost)


def test_models_that_fold_squeeze_and_have_no_bytes() -> None:
    folding = model_of(["the cat sat on the mat"] * 50, normalization_rule_name="nmt_nfkc_cf")
    assert {"capital letters", "line ends", "tabs", "carriage returns"} <= set(folding.lost)
    assert {"control characters", "format characters"} <= set(folding.lost)
    unknown = model_of(["a cat sat by the mat"] * 50, byte_fallback=False, vocab_size=300)
    assert {"rare characters", "capital letters", "other white space"} <= set(unknown.lost)
    assert "spaces" not in unknown.lost


@pytest.mark.parametrize("kind", [2, 5])
def test_a_space_that_is_no_piece_of_text_is_no_space(tokenizer: Tokenizer, kind: int) -> None:
    """Unknown and unused: the model has its id, and text is not matched with it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    at = tokenizer.id_of("\u2581")
    proto.pieces[at].type = kind
    proto.pieces[0].type = proto.SentencePiece.CONTROL if kind == 2 else proto.SentencePiece.UNKNOWN
    changed = Tokenizer(proto.SerializeToString())
    assert changed.decode(changed.encode(" ")) == "\u2581"
    assert not changed.exact
    assert "spaces" in changed.lost


def test_a_trainer_that_loses_text_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        train_module, "options", lambda config: {**options(config), "required_chars": "\n\t"}
    )
    config = TokenizerConfig(vocab_size=512).model_copy(update={"vocab_size": FIXED_PIECES + 12})
    with pytest.raises(RunFailed, match="does not give back spaces"):
        train(SPACELESS, config)


def _real_unicode() -> list[str]:
    """Every assigned kind of character, in runs of neighbours with spaces and line ends between."""
    import unicodedata

    points = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) != "Cn"]
    points = [c for c in points if unicodedata.category(c) not in ("Co", "Cs")]
    return ["".join(points[at : at + 97]) + " \n" for at in range(0, len(points), 97)]


def test_real_unicode_comes_back_where_spaces_are_rare() -> None:
    config = TokenizerConfig(vocab_size=512).model_copy(update={"vocab_size": FIXED_PIECES + 15})
    tokenizer = Tokenizer(train(SPACELESS, config).model)
    texts = _real_unicode()
    assert len(texts) > 1000
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.piece_bytes[ids].sum()) == len(text.encode())


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("baichuan_sp", ()),
        ("internlm_sp", ()),
        ("baichuan7b_sp_rebuilt", ("the character U+2581", "lone surrogates")),
        ("llama2_sp", ("the character U+2581", "lone surrogates")),
    ],
)
def test_what_released_models_lose_is_what_they_say(name: str, lost: tuple[str, ...]) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    tokenizer = Tokenizer.load(MODELS / name)
    assert tokenizer.lost == lost
    for text in _real_unicode()[:: 1 if tokenizer.exact else 7]:
        kept = text.replace("\u2581", " ") if lost else text
        assert tokenizer.decode(tokenizer.encode(text)) == kept


spaced = st.lists(
    st.sampled_from([" ", "  ", "\n", "\t", "\u3000", "天", "a", "ﬁ", "e\u0301", "\x0b"])
    | st.text(max_size=4),
    max_size=20,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=spaced)
def test_exact_is_the_truth_about_any_text(
    tokenizer: Tokenizer, spaceless: Tokenizer, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    expected = text.replace(" ", "\u2581")
    assert spaceless.decode(spaceless.encode(text)) == expected


def test_kinds_are_found_one_by_one() -> None:
    assert lost_kinds(lambda text: text) == ()
    for kind, texts in KINDS.items():
        for lost in texts:
            found = lost_kinds(lambda text, lost=lost: "" if text == lost else text)
            assert kind in found
