"""Small tokenizers, trained once from Python's own library: no network, no shared data."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import Trained, train

_CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。闰余成岁，律吕调阳。"


def library_texts() -> list[str]:
    """About 1.5 MB of Python, and a little Chinese, tab-indented and accented text."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [p.read_text("utf-8") for p in sorted(folder.glob("[a-d]*.py"))]
    tabbed = "func main() {\n\tif x > 0 {\n\t\treturn 2023\n\t}\n}\n" * 30
    return [*texts, *[f"{_CHINESE}\n{_CHINESE}第12章"] * 40, *[tabbed] * 20, "café naïve\n" * 200]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return library_texts()


@pytest.fixture(scope="session")
def config() -> TokenizerConfig:
    return TokenizerConfig(vocab_size=1536)


@pytest.fixture(scope="session")
def trained(texts: list[str], config: TokenizerConfig) -> Trained:
    return train(texts, config)


@pytest.fixture(scope="session")
def tokenizer(trained: Trained) -> Tokenizer:
    return Tokenizer.from_bytes(trained.model)
