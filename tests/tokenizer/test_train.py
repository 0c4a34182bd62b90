from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from bc2.errors import DataError, RecipeError, ResourceError, RunFailed
from bc2.tokenizer import sample as sample_module
from bc2.tokenizer import sentencepiece_worker
from bc2.tokenizer.layout import FIXED_PIECES
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import Trained, options, train


def pieces(tokenizer: Tokenizer) -> list[str]:
    """What was learned: every piece after the bytes, with real spaces."""
    return [
        tokenizer.piece_of(i).replace("\u2581", " ")
        for i in range(FIXED_PIECES, tokenizer.vocab_size)
    ]


def test_the_trainer_used_all_that_it_was_given(trained: Trained, texts: list[str]) -> None:
    facts = trained.facts
    assert facts["documents"] == len(texts)
    assert facts["used_bytes"] + facts["untrainable_bytes"] == sum(len(t.encode()) for t in texts)
    assert facts["items_loaded"] == facts["items"]
    assert facts["items_skipped"] == 0
    assert facts["coverage"] >= 0.9999


def test_the_model_is_a_function_of_texts_and_settings(
    trained: Trained, texts: list[str], config: TokenizerConfig
) -> None:
    assert train(iter(texts), config).model == trained.model
    assert train(texts[1:], config).model != trained.model


def test_the_model_is_what_sentencepiece_itself_trains(
    trained: Trained, texts: list[str], config: TokenizerConfig
) -> None:
    model = io.BytesIO()
    items = sample_module.Sample(config.sample_bytes).cut(texts)
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=items, model_writer=model, **options(config)
    )
    assert model.getvalue() == trained.model


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    learned = pieces(tokenizer)
    assert set("0123456789") <= set(learned)
    assert [p for p in learned if len(p) > 1 and any(c.isdigit() for c in p)] == []
    ids = tokenizer.encode("year 2023, 0x1F")
    assert [
        tokenizer.decode([i]) for i in ids if any(c.isdigit() for c in tokenizer.decode([i]))
    ] == list("202301")


def test_code_gets_pieces_of_whitespace_alone(tokenizer: Tokenizer) -> None:
    blank = {p for p in pieces(tokenizer) if not p.strip()}
    assert {" ", "\n", "\t", "    ", "        ", "\n\n"} <= blank
    assert len(tokenizer.encode(" " * 8)) == 1


@pytest.mark.parametrize("text", ["only words here", "无空格"])
def test_space_newline_and_tab_are_pieces_where_the_text_has_none(text: str) -> None:
    tokenizer = Tokenizer.from_bytes(train([text] * 9, _tiny(text)).model)
    assert {" ", "\n", "\t"} <= set(pieces(tokenizer))


def _tiny(text: str) -> TokenizerConfig:
    return TokenizerConfig(vocab_size=512).model_copy(
        update={"vocab_size": FIXED_PIECES + len(set(text) | {" "}) + 2}
    )


def test_pieces_have_at_most_32_characters(texts: list[str]) -> None:
    rules = "=" * 70 + "\n"
    config = TokenizerConfig(vocab_size=700)
    learned = pieces(Tokenizer.from_bytes(train([rules * 500, *texts[:5]], config).model))
    assert max(map(len, learned)) == 32
    short = config.model_copy(update={"max_piece_length": 6})
    learned = pieces(Tokenizer.from_bytes(train([rules * 500, *texts[:5]], short).model))
    assert max(map(len, learned)) == 6


def test_text_that_spells_control_pieces_teaches_none(texts: list[str]) -> None:
    forged = "<s> </s> <unk> <reserved_106> <control_3> <0x41>\n" * 500
    config = TokenizerConfig(vocab_size=700)
    tokenizer = Tokenizer.from_bytes(train([forged, *texts[:5]], config).model)
    ids = tokenizer.encode(forged)
    assert not any(tokenizer.is_control(i) for i in ids)
    assert tokenizer.decode(ids) == forged


def test_a_vocabulary_below_the_required_characters_is_refused_with_both_numbers() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    needed = FIXED_PIECES + 300 + 3  # and space, newline and tab
    with pytest.raises(RecipeError, match=rf"512 pieces is too small.*needs {needed} ") as raised:
        train([text], TokenizerConfig(vocab_size=512, character_coverage=1.0))
    assert raised.value.exit_code == 2
    assert f"set vocab_size to {needed} or more" in str(raised.value)


def test_a_vocabulary_above_what_the_text_fills_is_refused_with_both_numbers() -> None:
    with pytest.raises(RecipeError, match=r"4,000 pieces is too large.*at most (\d+)") as raised:
        train(["the cat sat on the mat\n" * 9], TokenizerConfig(vocab_size=4000))
    most = int(raised.value.what.rsplit(" ", 1)[1].replace(",", ""))
    exact = TokenizerConfig(vocab_size=512).model_copy(update={"vocab_size": most})
    assert Tokenizer(train(["the cat sat on the mat\n" * 9], exact).model).vocab_size == most


@pytest.mark.parametrize("nothing", [[], ["", ""], ["\0\0", "\u2581"]])
def test_no_text_is_an_error(nothing: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train(nothing, TokenizerConfig(vocab_size=512))


def test_mostly_untrainable_text_is_an_error() -> None:
    with pytest.raises(DataError, match=r"used 3,000 of 9,000 bytes"):
        train(["abc\0\0\0\0\0\0"] * 1000, _tiny("abc"))


def test_items_that_the_trainer_skips_are_noticed(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give it what our cutting never gives: items over its limit, or with its own mark."""
    monkeypatch.setattr(sample_module, "MAX_ITEM_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"used [\d,]+ of [\d,]+ bytes"):
        train(texts, TokenizerConfig(vocab_size=600))
    monkeypatch.setattr(sample_module, "MAX_ITEM_BYTES", 4096)
    monkeypatch.setattr(sample_module, "_UNTRAINABLE", re.compile("\0"))
    with pytest.raises(DataError, match="500 of 1,000 items"):
        train(["abc\u2585abc", "abc abc"] * 500, _tiny("abc "))


def test_the_sample_is_bounded(texts: list[str]) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for text in texts:
            read += len(text.encode())
            yield text

    config = TokenizerConfig(vocab_size=600, sample_bytes=100_000)
    facts = train(counted(), config).facts
    assert 95_000 < facts["used_bytes"] <= 100_000
    assert read < 300_000


def test_progress_sees_every_byte_and_the_merges(texts: list[str]) -> None:
    seen: list[tuple[float, str]] = []
    trained = train(
        texts, TokenizerConfig(vocab_size=1500), progress=lambda n, what: seen.append((n, what))
    )
    assert sum(n for n, _ in seen) == trained.facts["used_bytes"]
    # SentencePiece logs every hundredth merge.
    assert re.fullmatch(r"(900|\d,\d00) pieces learned", seen[-1][1])


def test_nothing_of_sentencepiece_reaches_the_terminal(
    texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Tokenizer.from_bytes(train(texts[:10], TokenizerConfig(vocab_size=600)).model)
    with pytest.raises(RecipeError):
        train(texts[:2], TokenizerConfig(vocab_size=100_000))
    assert capfd.readouterr() == ("", "")


def test_an_error_in_the_texts_is_the_callers_own(texts: list[str]) -> None:
    def broken() -> Iterator[str]:
        yield texts[0]
        raise DataError("row 7 is malformed", where="a.jsonl:7")

    with pytest.raises(DataError, match="row 7 is malformed"):
        train(broken(), TokenizerConfig(vocab_size=600))


def test_an_interrupt_leaves_no_trainer_behind(texts: list[str]) -> None:
    started: list[int] = []

    def interrupted() -> Iterator[str]:
        yield texts[0]
        started.extend(_children())
        raise KeyboardInterrupt

    before = set(_children())
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(), TokenizerConfig(vocab_size=600))
    assert set(started) - before
    assert set(_children()) <= before


def _children() -> list[int]:
    return [int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _worker_that(body: str, tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(body)
    return path


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "out of memory"),
        ("raise OSError(28, 'No space left on device')", ResourceError, "disk full"),
        ("import os; os.abort()", RunFailed, r"exit -6"),
        ("raise SystemExit('no such module')", RunFailed, "no such module"),
        ("import sys; sys.stdin.buffer.read(100); print('x')", RunFailed, "cannot tell"),
    ],
)
def test_a_trainer_that_dies_is_an_error_of_ours(
    body: str,
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
) -> None:
    monkeypatch.setattr(sentencepiece_worker, "__file__", str(_worker_that(body, tmp_path)))
    with pytest.raises(error, match=words):
        train(texts, TokenizerConfig(vocab_size=600))


@pytest.mark.parametrize("end_mark", [b"", b"\0\0\0\0"])
def test_the_trainer_dies_with_its_parent(end_mark: bytes, texts: list[str]) -> None:
    """While it reads, and while it trains: end of file on stdin means that nobody waits."""
    items = sample_module.Sample(1 << 30).cut(texts * 4)
    framed = b"".join(sentencepiece_worker.LENGTH.pack(len(item)) + item for item in items)
    settings = json.dumps(options(TokenizerConfig(vocab_size=8000))).encode()
    worker = subprocess.Popen(
        [sys.executable, "-P", sentencepiece_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, log = worker.communicate(settings + b"\n" + framed + end_mark, timeout=60)
    assert worker.returncode == 1
    assert out == b""
    assert sentencepiece_worker.ERROR_MARK.encode() not in log


@pytest.mark.slow
def test_long_chinese_text_at_the_quickstarts_size() -> None:
    """8,192 pieces are enough for mixed Chinese; 4,096 are not, and the error says so."""
    import gzip

    root = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "corpus"
    if not root.is_dir():
        pytest.skip("needs shared/data/corpus, or BC2_TEST_DATA")
    texts: list[str] = []
    for name in ("zh_law", "zh_modern_translation", "en_docs", "code"):
        with gzip.open(root / f"{name}.jsonl.gz", "rt") as lines:
            texts += [json.loads(line)["text"] for _, line in zip(range(300), lines, strict=False)]
    with pytest.raises(RecipeError, match="too small"):
        train(texts, TokenizerConfig(vocab_size=4096))
    trained = train(texts, TokenizerConfig(vocab_size=8192))
    assert trained.facts["items_loaded"] == trained.facts["items"]
    tokenizer = Tokenizer.from_bytes(trained.model)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
