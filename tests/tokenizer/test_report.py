from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from made_json_tokenizers import qwen_like

from bc2.errors import DataError
from bc2.tokenizer import report as report_module
from bc2.tokenizer.report import compression
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import Trained, train


def test_rates_are_tokens_over_bytes_and_characters(
    tokenizer: Tokenizer, trained: Trained, texts: list[str]
) -> None:
    groups = [("en" if text.isascii() else "zh", text) for text in texts]
    report = compression({"ours": tokenizer}, groups)
    native = sentencepiece.SentencePieceProcessor(model_proto=trained.model)
    chinese = [text for text in texts if not text.isascii()]
    row = report.row("ours", "zh")
    assert row.tokens == sum(map(len, native.encode(chinese)))
    assert row.documents == len(chinese)
    assert row.tokens_per_byte == row.tokens / sum(len(t.encode()) for t in chinese)
    assert row.tokens_per_character == row.tokens / sum(len(t) for t in chinese)
    assert row.unknown == 0


def test_the_total_is_the_sum_and_batches_do_not_matter(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [(str(n % 3), text) for n, text in enumerate(texts)]
    whole = compression({"ours": tokenizer}, groups, threads=2)
    monkeypatch.setattr(report_module, "_BATCH_CHARS", 10_000)
    assert compression({"ours": tokenizer}, iter(groups)).to_json() == whole.to_json()
    for field in ("documents", "characters", "bytes", "tokens"):
        parts = [getattr(row, field) for row in whole.rows if row.group != report_module.TOTAL]
        assert sum(parts) == getattr(whole.row("ours"), field)
        assert len(parts) == 3


def test_models_stand_side_by_side(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    small = tmp_path / "small.model"
    small.write_bytes(train(texts, TokenizerConfig(vocab_size=700)).model)
    report = compression({"ours": tokenizer, "small": small}, [("code", t) for t in texts[:20]])
    assert report.row("small").tokens > report.row("ours").tokens
    assert [(row.group, row.model) for row in report.rows] == [
        ("code", "ours"),
        ("code", "small"),
        ("total", "ours"),
        ("total", "small"),
    ]
    assert all(len(cells) == len(report.columns) for cells in report.cells())
    assert json.loads(json.dumps(report.to_json()))[0]["tokens_per_byte"] > 0
    assert report.lost == {}


def test_what_a_model_does_not_give_back_is_said(tokenizer: Tokenizer) -> None:
    models = {"ours": tokenizer, "qwen": Tokenizer(qwen_like())}
    report = compression(models, [("en", "a text")])
    assert list(report.lost) == ["qwen"]
    assert "accents as characters of their own" in report.lost["qwen"]


def test_nothing_to_compare_on_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        compression({"ours": tokenizer}, [])
    with pytest.raises(DataError, match="no such file"):
        compression({"other": tmp_path / "missing.model"}, [("en", "text")])
