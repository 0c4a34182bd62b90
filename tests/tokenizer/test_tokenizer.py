from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import Bc2Error, DataError
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import MODEL_FILE
from bc2.tokenizer.train import Trained

NASTY = [
    "",
    " ",
    "   leading, trailing   ",
    "\u2581",
    "a\u2581b \u2581 \u2581\u2581",
    "\ud800",
    "x\udfffy\ud83d\ude00z",  # a pair of lone surrogates is not an emoji
    "\udc80\u2581\ud800",
    "\0",
    "a\0b\0\0",
    "a\r\nb\rc\n\r\n",
    "\t\t \tx\t",
    "👩‍👩‍👧‍👦 🇨🇳 👍🏽",
    "مرحبا بالعالم \u202eabc\u202c",
    "e\u0301 \u00e9 a\u0300\u0323",
    "<reserved_106> <reserved_107>",
    "<s></s><unk><pad>",
    "<0x41><0x0A>",
    "<control_0>",
    "\u2585 \u2047 \ufffd \ufeff \u200b \u00a0\u3000",
    "０１２３ 〇一二 ²³ ٣",
    "\U0010ffff\ue000\ufffe",
    "ﬁ Å ½ ①",
    " " * 1000,
    "字" * 5000,
]

anything = st.text(st.characters(categories=None))
#: Mostly what the tokenizer treats apart, so that the parts meet in every way.
risky = st.text(st.sampled_from([*"\u2581\u2585\0 \t\r\n<>s/a1字", "\ud800", "\udc00", "\udfff"]))


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == bytes_of(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_control(i) for i in ids)
    assert int(tokenizer.piece_bytes[ids].sum()) == len(bytes_of(text))


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    check_round_trip(tokenizer, text)


@settings(max_examples=400, deadline=None)
@given(anything | risky)
def test_any_text_round_trips_and_never_means_control(tokenizer: Tokenizer, text: str) -> None:
    check_round_trip(tokenizer, text)


def test_every_code_point_round_trips(tokenizer: Tokenizer) -> None:
    """All 1,114,112 of them, lone surrogates included, 64 at a time and each after a letter."""
    blocks = ["".join(f"a{chr(c)}" for c in range(at, at + 64)) for at in range(0, 0x110000, 64)]
    for block, ids in zip(blocks, tokenizer.encode_batch(blocks, threads=2), strict=True):
        assert tokenizer.decode(ids) == block
        assert min(ids) > 196


@settings(deadline=None)
@given(st.lists(anything | risky, max_size=8), st.sampled_from([1, 2, 4]))
def test_a_batch_is_the_texts_one_by_one(
    tokenizer: Tokenizer, texts: list[str], threads: int
) -> None:
    alone = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts, threads) == alone
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts, threads)] == alone
    tokens, lengths = tokenizer.encode_flat(texts, threads)
    assert tokens.dtype == np.uint16
    assert lengths.tolist() == [len(ids) + 1 for ids in alone]
    assert tokens.tolist() == [i for ids in alone for i in [*ids, tokenizer.eos_id]]


def test_ordinary_text_is_encoded_as_sentencepiece_does(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    native = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer.encode_batch(texts, 2) == native.encode(texts)


def test_ids_that_cut_a_character_decode_to_replacements(tokenizer: Tokenizer) -> None:
    byte = [tokenizer.id_of(f"<0x{b:02X}>") for b in "😀".encode()]
    assert tokenizer.decode(byte) == "😀"
    assert tokenizer.decode(byte[:3]) == "\ufffd"
    assert tokenizer.decode_bytes(byte[:3]) == "😀".encode()[:3]
    assert tokenizer.decode([byte[1], *byte, byte[0]]) == "\ufffd😀\ufffd"


@given(st.binary(max_size=40))
def test_any_bytes_decode_as_python_replaces_them(tokenizer: Tokenizer, data: bytes) -> None:
    ids = [197 + byte for byte in data]
    assert tokenizer.decode_bytes(ids) == data
    text = tokenizer.decode(ids)
    if not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert text == data.decode("utf-8", "replace")


def test_control_ids_are_no_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([195, *hello, 196, tokenizer.eos_id, 0]) == "hello"
    assert tokenizer.piece_bytes[:197].tolist() == [0] * 197
    assert (tokenizer.piece_bytes[197:] > 0).all()
    assert tokenizer.piece_bytes.dtype == np.int32


@pytest.mark.parametrize("wrong", [-1, 1536, 10**9])
def test_an_id_outside_the_vocabulary_is_an_error(tokenizer: Tokenizer, wrong: int) -> None:
    for ask in (
        lambda: tokenizer.decode([300, wrong]),
        lambda: tokenizer.is_control(wrong),
        lambda: tokenizer.piece_of(wrong),
    ):
        with pytest.raises(DataError, match=f"token id {wrong} .* 1,536 pieces"):
            ask()


def test_decoding_takes_arrays(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("hello, 世界"), np.uint16)
    assert tokenizer.decode(ids) == "hello, 世界"
    assert tokenizer.decode(iter(ids.tolist())) == "hello, 世界"
    assert tokenizer.decode([]) == ""


def test_no_such_piece_is_an_error(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_of("<unk>") == 0
    with pytest.raises(DataError, match="no piece 'no such'"):
        tokenizer.id_of("no such")


def test_a_model_is_read_from_file_directory_and_bytes(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained.model)
    digests = {Tokenizer.load(p).digest for p in (path, str(path), tmp_path)}
    assert digests == {Tokenizer.from_bytes(trained.model).digest}


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 100])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a SentencePiece model") as raised:
        Tokenizer.load(path)
    assert raised.value.where == str(path)


def test_a_damaged_model_is_refused_or_works(trained: Trained) -> None:
    """What still parses is the registry's to find, by its digest; here nothing may crash."""
    model = trained.model
    damaged = [model[:size] for size in range(0, len(model), 499)]
    flips = range(3, len(model), 199)
    damaged += [model[:at] + bytes([model[at] ^ 0x55]) + model[at + 1 :] for at in flips]
    refused = 0
    for data in damaged:
        try:
            tokenizer = Tokenizer.from_bytes(data)
        except DataError:
            refused += 1
        else:
            tokenizer.decode(tokenizer.encode("some text\u2581 \0 字"))
    assert refused > len(damaged) // 4


def test_no_such_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path / "missing.model")


def test_a_tokenizer_travels_to_other_processes_and_threads(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest
    expected = [tokenizer.encode(text) for text in texts[:8]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.encode, texts[:8])) == expected


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, bc2.tokenizer.tokenizer, bc2.tokenizer.train; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def _foreign(**options: Any) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 9),
        model_writer=model,
        **{"model_type": "bpe", "vocab_size": 300, "hard_vocab_limit": False, **options},
    )
    return Tokenizer.from_bytes(model.getvalue())


_EXACT: dict[str, Any] = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize(
    "change",
    [
        {"byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
    ],
)
def test_foreign_models_say_whether_they_are_exact(change: dict[str, object]) -> None:
    assert _foreign(**_EXACT).exact
    foreign = _foreign(**{**_EXACT, **change})
    assert not foreign.exact
    assert foreign.decode(foreign.encode("the cat sat")) == "the cat sat"
    for text in NASTY:
        foreign.decode(foreign.encode(text))  # lossy, but never an exception


def test_a_foreign_model_without_end_makes_no_shards() -> None:
    with pytest.raises(Bc2Error, match="no end-of-text"):
        _foreign(**_EXACT, eos_id=-1).encode_flat(["the cat"])


def test_transformers_encodes_alike(trained: Trained, texts: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(trained.model)
    peer = transformers.LlamaTokenizer.from_pretrained(tmp_path, add_prefix_space=False)
    ours = Tokenizer.load(tmp_path)
    assert len(peer) == ours.vocab_size
    assert peer.convert_tokens_to_ids("<reserved_106>") == 195
    for text in [*texts[:12], *texts[-61:-59]]:
        assert peer.encode(text, add_special_tokens=False) == ours.encode(text)


MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"


@pytest.mark.parametrize(
    "name", ["baichuan_sp", "baichuan7b_sp_rebuilt", "internlm_sp", "llama2_sp"]
)
def test_released_models_decode_as_sentencepiece_does(name: str, texts: list[str]) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    tokenizer = Tokenizer.load(MODELS / name)
    native = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in texts[:6] + texts[-60:-58]:
        ids = tokenizer.encode(text)
        assert ids == native.encode(text)
        assert tokenizer.decode(ids) == native.decode(ids) == text


@pytest.mark.parametrize("exact", [True, False])
def test_spans_cover_a_text_as_sentencepiece_aligns_it(exact: bool) -> None:
    tokenizer = _foreign(**_EXACT) if exact else _foreign(**{**_EXACT, "add_dummy_prefix": True})
    native = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in ["the cat", "字 sat é on 😀 the mat", "  a\n", ""]:
        spans = tokenizer.spans(text)
        assert spans.ids == tokenizer.encode(text)
        expected = native.encode(text, return_type="offset_mapping")["offsets"]
        for own, theirs in zip(spans.characters, expected, strict=True):
            # SentencePiece gives all but the last byte of a character nothing.
            assert own == theirs or (theirs[0] == theirs[1] and own == (theirs[0], theirs[0] + 1))
        if exact:
            pieces = [text.encode()[first:last] for first, last in spans.bytes]
            assert pieces == [tokenizer.decode_bytes([i]) for i in spans.ids]


def test_spans_of_what_sentencepiece_does_not_keep(tokenizer: Tokenizer) -> None:
    spans = tokenizer.spans("a\u2581\ud800b")
    assert spans.ids == tokenizer.encode("a\u2581\ud800b")
    assert spans.characters == [(0, 1), *[(1, 2)] * 3, *[(2, 3)] * 3, (3, 4)]
    assert spans.bytes == [(i, i + 1) for i in range(8)]


def test_special_ids_are_the_control_pieces(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special_ids.values()) == list(range(197))
    assert tokenizer.special_ids["<reserved_106>"] == 195
    assert tokenizer.generated_bytes([195, 1536, *tokenizer.encode("é")]) == b"\xff" + "é".encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "baichuan_sp", "baichuan7b_sp_rebuilt", "llama2_sp"])
def test_10_000_real_texts_are_encoded_as_by_sentencepiece(name: str, trained: Trained) -> None:
    """In both languages and code, parts of documents; white space and special pieces put in."""
    corpus = MODELS.parent / "corpus"
    if not corpus.is_dir() or not (name == "trained" or (MODELS / name).is_dir()):
        pytest.skip("needs shared/data, or BC2_TEST_DATA")
    model = trained.model if name == "trained" else (MODELS / name / MODEL_FILE).read_bytes()
    tokenizer = Tokenizer.from_bytes(model)
    native = sentencepiece.SentencePieceProcessor(model_proto=model)
    chance, count = random.Random(0), 0
    put_in = [text for text in NASTY if text.isprintable() and "\u2581" not in text]
    for path in sorted(corpus.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in itertools.islice(file, 1500):
                text = json.loads(line)["text"].replace("\u2581", "")
                at = chance.randrange(max(1, len(text) - 600))
                text = text[at : at + 200] + chance.choice(put_in) + text[at + 200 : at + 600]
                ids = tokenizer.encode(text)
                assert ids == native.encode(text)
                assert not tokenizer.exact or tokenizer.decode(ids) == text
                count += 1
    assert count >= 10_000
