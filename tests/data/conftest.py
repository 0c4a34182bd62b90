"""A small corpus and a small tokenizer that the tests of this room share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.prep.prepare import prepare

Write = Callable[[str, bytes], Path]


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def source(path: Path | str, name: str = "s", **more: Any) -> SourceConfig:
    return SourceConfig(name=name, path=str(path), **more)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def texts_of(language: str, count: int) -> list[str]:
    words = "天地玄黄宇宙洪荒日月盈昃" if language == "zh" else ["alpha", "beta", "gamma", "delta"]
    glue = "" if language == "zh" else " "
    return [
        glue.join(words[(i * 7 + j * j) % len(words)] for j in range(5 + i % 60)) + f" {i}"
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, several parts each, 10% held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("en", "zh"):
        rows = [{"text": text} for text in texts_of(language, 600)]
        (folder / f"{language}.jsonl").write_bytes(jsonl(rows))
    config = CorpusConfig(
        sources=tuple(source(folder / f"{n}.jsonl", n, lang=n) for n in ("en", "zh")),
        heldout_fraction=0.1,
        part_bytes=20_000,
    )
    prepare(config, folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece tokenizer, trained as `bc2 train-tokenizer` trains."""
    from bc2.tokenizer.tokenizer_config import TokenizerConfig
    from bc2.tokenizer.train import train

    # More than the corpus, so that there is enough to fill the vocabulary.
    texts = [*texts_of("en", 600), *texts_of("zh", 600), Path(os.__file__).read_text("utf-8")]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(texts, TokenizerConfig(vocab_size=1024)).model)
    return path


@pytest.fixture(scope="session")
def tokens(corpus: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token shards of `corpus`."""
    from bc2.data.tokenize import tokenize

    folder = tmp_path_factory.mktemp("tokens")
    tokenize(corpus, tokenizer_path, folder / "tokens", work=folder / "work", workers=1)
    return folder / "tokens"
