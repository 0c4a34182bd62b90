"""Likelihoods of texts, against full forward passes, lm-eval's windows and the trainer's loss."""

from __future__ import annotations

import gc
import gzip
import itertools
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from made_json_tokenizers import llama3_like

from bc2.data.documents import Document, SourceRow
from bc2.data.loader import pack
from bc2.data.readers import documents_at
from bc2.errors import DataError, RunFailed, UsageError
from bc2.evaluate import text_likelihood
from bc2.evaluate.text_likelihood import (
    TextLikelihood,
    TextScores,
    TextSettings,
    document_ids,
    measure_text,
    text_windows,
)
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Score
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.tokenizer.boundaries import Boundaries
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train
from bc2.train.engines.local import LocalEngine
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.heldout import heldout_loss
from bc2.train.pretrain.next_token import NextToken

WINDOW = 24
ENGLISH = "The quick brown fox jumps over the lazy dog, and the dog says nothing. "
CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [ENGLISH * 3, CHINESE * 3, "def f(x):\n    return x + 1\n" * 3]
    return Tokenizer.from_bytes(train(texts, TokenizerConfig(vocab_size=512)).model)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return build(torch.float32, tokenizer.vocab_size)


def build(dtype: torch.dtype, vocab_size: int) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=32,
        num_layers=2,
        num_heads=3,
        context_length=WINDOW,
    )
    made = Transformer(config)
    made.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return made.to(dtype).requires_grad_(False)


def engine_of(model: Transformer, **config: Any) -> InferenceEngine:
    return InferenceEngine(model, EngineConfig(cache_bytes=1 << 20, **config), eos_id=2)


def documents(*texts: str, lang: str | None = None) -> list[Document]:
    return [
        Document.of(SourceRow.of(text, "a.jsonl", row), "a", lang)
        for row, text in enumerate(texts, 1)
    ]


def naive_nats(tokenizer: Tokenizer, text: str, stride: int) -> list[float]:
    """What each token costs, in float64: one full pass for each window."""
    exact = build(torch.float64, tokenizer.vocab_size)
    before = tokenizer.begin_ids or (tokenizer.eos_id,)
    ids = [before[-1], *tokenizer.encode(text)]
    costs: list[float] = []
    for end in [*range(WINDOW, len(ids) - 1, stride), len(ids) - 1]:
        begin = max(0, end - WINDOW)
        read = torch.tensor(ids[begin:end])
        hidden = exact(read, torch.tensor([0, len(read)], dtype=torch.int32), len(read))
        rows = exact.logits(hidden).log_softmax(-1)
        costs += [-float(rows[at - 1 - begin, ids[at]]) for at in range(len(costs) + 1, end + 1)]
    return costs


def check(scores: TextScores, texts: list[str], costs: list[list[float]]) -> None:
    total = scores.as_json()["total"]
    nats = sum(map(sum, costs))
    assert total["documents"] == len(texts)
    assert total["tokens"] == sum(map(len, costs))
    assert total["bytes"] == sum(len(text.encode()) for text in texts)
    assert total["nats"] == pytest.approx(nats, rel=2e-6)
    assert total["nats_per_token"] == pytest.approx(nats / total["tokens"], rel=2e-6)
    assert total["bits_per_byte"] == pytest.approx(nats / math.log(2) / total["bytes"], rel=2e-6)
    assert total["perplexity"] == pytest.approx(math.exp(nats / total["tokens"]), rel=1e-5)
    first = sum(one[0] for one in costs) / len(costs)
    assert total["first_token_nats"] == pytest.approx(first, rel=2e-6)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of the same documents, in whichever passes."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-5)), name


def test_texts_are_predicted_from_their_beginning() -> None:
    tokenizer = Tokenizer.from_bytes(llama3_like())
    texts = [ENGLISH, CHINESE]
    scores = measure_text(
        engine_of(build(torch.float32, tokenizer.vocab_size)), tokenizer, documents(*texts),
        TextSettings(stride=5),
    )  # fmt: skip
    check(scores, texts, [naive_nats(tokenizer, text, 5) for text in texts])
    assert scores.as_json()["first_token_from"] == "beginning of text"


@pytest.mark.parametrize("stride", [None, 1, 5, WINDOW])
def test_texts_cost_what_full_passes_in_float64_say(
    tokenizer: Tokenizer, model: Transformer, stride: int | None
) -> None:
    texts = [
        "fox",
        ENGLISH,
        "a",
        CHINESE * 2 + ENGLISH * 4,
        ENGLISH[:30],
        ENGLISH * 2 + "\n\x00\u2581 🦊",
    ]
    assert len(tokenizer.encode(texts[2])) == 1
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert min(lengths) < WINDOW < 3 * WINDOW < max(lengths)
    costs = [naive_nats(tokenizer, text, stride or WINDOW // 2) for text in texts]
    for config in ({}, {"step_tokens": 7, "window": 2}):
        scores = measure_text(
            engine_of(model, **config), tokenizer, documents(*texts), TextSettings(stride=stride)
        )
        assert (scores.window, scores.stride) == (WINDOW, stride or WINDOW // 2)
        check(scores, texts, costs)


def test_a_document_of_exactly_the_window_and_one_token_more(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    long = ENGLISH * 9
    cuts = [at for at in range(len(long)) if len(tokenizer.encode(long[:at])) == WINDOW]
    more = [at for at in range(len(long)) if len(tokenizer.encode(long[:at])) == WINDOW + 1]
    texts = [long[: cuts[0]], long[: more[0]]]
    costs = [naive_nats(tokenizer, text, 12) for text in texts]
    check(measure_text(engine_of(model), tokenizer, documents(*texts)), texts, costs)


@settings(deadline=None)
@given(
    count=st.integers(0, 60),
    window=st.integers(1, 17),
    stride=st.integers(1, 17),
    prefix=st.just(7),
)
def test_windows_are_lm_evals_rolling_windows(
    count: int, window: int, stride: int, prefix: int
) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    stride = min(stride, window)
    ids = list(range(100, 100 + count))
    expected = map(
        make_disjoint_window, get_rolling_token_windows(ids, prefix, window, window - stride + 1)
    )
    found = list(text_windows(iter(ids), window, stride, prefix))
    assert found == list(expected)
    assert [token for _, predicted in found for token in predicted] == ids
    assert all(len(context) + len(predicted) - 1 <= window for context, predicted in found)


def test_within_the_window_it_is_the_trainers_heldout_loss(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    """Of the same tokens: the end-of-text token first and not last, as no shard has it."""
    texts = [ENGLISH[:20], CHINESE[:9], "fox", "def f(x):"]
    batches = []
    for text in texts:
        row = np.array([[tokenizer.eos_id, *tokenizer.encode(text)]])
        assert row.shape[1] <= WINDOW + 1
        batches.append(pack(row, np.zeros(1, np.int64), eos_id=-1))
    trainer = LocalEngine(
        build(torch.float32, tokenizer.vocab_size).requires_grad_(True), AdamWConfig()
    )
    theirs = heldout_loss(trainer, NextToken(0.0), iter(batches), tokenizer.piece_bytes)
    ours = measure_text(engine_of(model), tokenizer, documents(*texts)).as_json()["total"]
    assert ours["tokens"] == theirs["heldout_tokens"]
    assert ours["nats_per_token"] == pytest.approx(theirs["heldout_loss"], rel=1e-6)
    assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-6)


def test_languages_are_told_apart_and_add_up(tokenizer: Tokenizer, model: Transformer) -> None:
    english, chinese = documents(ENGLISH, "fox", lang="en"), documents(CHINESE, lang="zh")
    unknown = documents("", "x + 1", "")
    mixed = [unknown[0], english[0], chinese[0], unknown[1], english[1], unknown[2]]
    engine = engine_of(model)
    found = measure_text(engine, tokenizer, mixed).as_json()
    assert found["empty_documents"] == 2
    assert (found["first_token_from"], found["end_of_text_predicted"]) == ("end of text", False)
    assert list(found["languages"]) == ["en", "unknown", "zh"]
    for language, alone in (("en", english), ("zh", chinese), ("unknown", unknown)):
        same = measure_text(engine, tokenizer, alone).as_json()["total"]
        assert_same(found["languages"][language], same)
    for name in ("documents", "tokens", "bytes", "nats"):
        parts = [one[name] for one in found["languages"].values()]
        assert found["total"][name] == pytest.approx(sum(parts), rel=1e-12)


def test_standard_errors_are_those_of_ratios_of_documents() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 400, 60)
    sizes = tokens * 4 + rng.integers(0, 9, 60)
    nats = tokens * rng.normal(3, 0.4, 60)
    likelihood = TextLikelihood()
    for one in zip(nats.tolist(), tokens.tolist(), sizes.tolist(), strict=True):
        likelihood.add("en", *one, first_nats=9.0)
    found = likelihood.result()["total"]
    for name, amount, unit in (
        ("nats_per_token", tokens, 1.0),
        ("bits_per_byte", sizes, math.log(2)),
    ):
        ratio = nats.sum() / amount.sum()
        residuals = nats - ratio * amount
        expected = math.sqrt(60 / 59 * (residuals**2).sum()) / amount.sum()
        assert found[name] == pytest.approx(ratio / unit)
        assert found[f"{name}_stderr"] == pytest.approx(expected / unit)
    single = TextLikelihood()
    single.add(None, 3.0, 2, 5, first_nats=2.0)
    assert single.result()["languages"]["unknown"]["nats_per_token_stderr"] is None


def test_a_perplexity_beyond_floats_is_none() -> None:
    likelihood = TextLikelihood()
    likelihood.add("en", 1000.0, 1, 1, first_nats=1000.0)
    found = likelihood.result()
    assert found["total"]["perplexity"] is None
    json.dumps(found, allow_nan=False)


def test_the_limit_counts_documents_as_they_are_read(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    read = documents("", "fox", ENGLISH, CHINESE)
    scores = measure_text(engine_of(model), tokenizer, iter(read), TextSettings(limit=3))
    assert scores.likelihood.documents == 2
    assert scores.likelihood.empty == 1


def test_progress_counts_documents_and_tokens(tokenizer: Tokenizer, model: Transformer) -> None:
    told: list[tuple[int, int]] = []
    texts = [ENGLISH * 3, "fox"]
    measure_text(
        engine_of(model), tokenizer, documents(*texts), None, lambda *now: told.append(now)
    )
    assert told == sorted(told)
    assert told[0] == (0, WINDOW)
    assert told[-1] == (1, sum(len(tokenizer.encode(text)) for text in texts))


def test_long_documents_are_encoded_in_parts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_likelihood, "_ENCODED_CHARACTERS", 10)
    sizes: list[int] = []
    encode = Tokenizer.encode

    def noted(self: Tokenizer, text: str) -> list[int]:
        sizes.append(len(text))
        return encode(self, text)

    for text in (ENGLISH * 5, CHINESE * 5, " " * 50, "", "\u2581" * 30, ENGLISH + " " * 50):
        expected = tokenizer.encode(text)
        with monkeypatch.context() as patched:
            patched.setattr(Tokenizer, "encode", noted)
            sizes.clear()
            assert list(document_ids(text, tokenizer, Boundaries(tokenizer))) == expected
        assert sum(sizes) == len(text)
        assert max(sizes, default=0) <= 10 or " " * 50 in text


def test_memory_does_not_grow_with_documents_or_their_length(
    tokenizer: Tokenizer, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: InferenceEngine, requests: Any, **how: Any) -> Iterator[Score]:
        for number, one in enumerate(requests):
            yield Score(number, [-1.0] * len(one.continuation), [], 0, 0)

    monkeypatch.setattr(text_likelihood, "_ENCODED_CHARACTERS", 1000)
    monkeypatch.setattr(InferenceEngine, "score", score)  # the engine's memory is not asked here
    engine = engine_of(model, step_tokens=64)

    def peak(texts: Iterator[str]) -> int:
        made = (documents(text)[0] for text in texts)
        gc.collect()
        tracemalloc.start()
        try:
            measure_text(engine, tokenizer, made, TextSettings(stride=WINDOW))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(iter([ENGLISH]))
    few = peak(itertools.repeat(ENGLISH, 100))
    # What is held of a document is above 2 kB with its tokens, windows and scores.
    assert peak(itertools.repeat(ENGLISH, 600)) < few + 200_000
    # Of this one the tokens alone are 280 kB.
    assert peak(iter([ENGLISH * 350])) < few + 150_000


def test_no_text_is_an_error(tokenizer: Tokenizer, model: Transformer) -> None:
    for read in ([], documents("", "")):
        with pytest.raises(DataError, match="no text to measure"):
            measure_text(engine_of(model), tokenizer, read)


def test_a_stride_beyond_the_window_is_an_error(tokenizer: Tokenizer, model: Transformer) -> None:
    with pytest.raises(UsageError, match="stride of 25 tokens is larger"):
        measure_text(engine_of(model), tokenizer, documents("x"), TextSettings(stride=WINDOW + 1))
    for wrong in ({"stride": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="greater than 0"):
            TextSettings(**wrong)


def test_a_model_whose_numbers_are_not_finite_fails(tokenizer: Tokenizer) -> None:
    broken = build(torch.float32, tokenizer.vocab_size)
    broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(RunFailed):
        measure_text(engine_of(broken), tokenizer, documents("fox"))


def test_an_impossible_token_is_an_error_that_names_the_document(
    tokenizer: Tokenizer, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = InferenceEngine.score

    def impossible(self: InferenceEngine, requests: Any, **how: Any) -> Any:
        for one in score(self, requests, **how):
            yield Score(one.index, [-math.inf], [False], 0, 0)

    monkeypatch.setattr(InferenceEngine, "score", impossible)
    with pytest.raises(RunFailed, match="sum to -inf") as raised:
        measure_text(engine_of(model), tokenizer, documents("", "fox"))
    assert raised.value.where == "a.jsonl:2"


def test_a_tokenizer_of_another_model_is_an_error(tokenizer: Tokenizer) -> None:
    small = build(torch.float32, 300)
    with pytest.raises(DataError) as raised:
        measure_text(engine_of(small), tokenizer, documents(ENGLISH))
    assert "a.jsonl:1" in str(raised.value)


def test_a_tokenizer_without_an_end_of_text_is_an_error(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    endless = Tokenizer.from_bytes(tokenizer.model)
    endless.eos_id = -1
    with pytest.raises(DataError, match="no end-of-text piece"):
        measure_text(engine_of(model), endless, documents("fox"))


def test_files_of_every_format_say_the_same(
    tokenizer: Tokenizer, model: Transformer, tmp_path: Path
) -> None:
    rows = [{"text": ENGLISH, "lang": "en"}, {"text": CHINESE, "lang": "zh"}, {"text": "fox"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    engine = engine_of(model)
    expected = measure_text(engine, tokenizer, documents_at([str(tmp_path / "a.jsonl")])).as_json()
    assert list(expected["languages"]) == ["en", "unknown", "zh"]
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        read = documents_at([str(tmp_path / name)])
        assert measure_text(engine, tokenizer, read).as_json() == expected
    (tmp_path / "b.txt").write_text(ENGLISH)
    text = measure_text(engine, tokenizer, documents_at([str(tmp_path / "*.txt")])).as_json()
    assert list(text["languages"]) == ["unknown"]
    assert_same(text["total"], expected["languages"]["en"])
