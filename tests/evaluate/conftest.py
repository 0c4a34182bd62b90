"""A tiny model with its tokenizer, registered, and the made files of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_releases
import pytest
import torch

from bc2.cache_folder import cache_folder
from bc2.evaluate.evaluation import EvalRequest
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuitePrompts, SuiteRows
from bc2.generate.engine_config import EngineConfig
from bc2.harness.suites import suite_of
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE, TokenizerConfig
from bc2.tokenizer.train import train

CONTEXT = 320


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--data``."""
    folder = tmp_path_factory.mktemp("releases")
    made_releases.write_releases(folder)
    return folder


@pytest.fixture(scope="session")
def made_tokenizer() -> Tokenizer:
    made = [made_releases.made(number) for number in range(80)]
    texts = [
        f"Question: {one.english}\nA. {one.options[0]}\nAnswer: {one.letter}\n#### {one.a}\n\n"
        f"{one.chinese}\n答案： {one.letter}\n以下是关于数学的单项选择题\ndef f(x):\n    return x\n"
        for one in made
    ]
    config = TokenizerConfig(vocab_size=544, character_coverage=1.0)
    return Tokenizer.from_bytes(train(texts, config).model)


@pytest.fixture(scope="session")
def made_model(made_tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=made_tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_layers=2,
        num_heads=2, context_length=CONTEXT, initializer_range=0.3,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(5))
    return model.requires_grad_(False).eval()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "home")


@pytest.fixture
def checkpoint(registry: Registry, made_model: Transformer, made_tokenizer: Tokenizer) -> Artifact:
    draft = Draft("checkpoint", "made", "0" * 64, position=Position(1, 1), role="base")
    with registry.stage(draft) as staged:
        (staged.path / TOKENIZER_FILE).write_bytes(made_tokenizer.model)
        save_model(staged.path, made_model.config, made_model.state_dict())
        return staged.publish()


@pytest.fixture
def holder(checkpoint: Artifact) -> Iterator[ModelHolder]:
    made = ModelHolder.on(checkpoint, "cpu", "fp32", EngineConfig(cache_bytes=1 << 22))
    yield made
    made.close()


class MakePrompts:
    """The prompts of a suite on the made files, kept in a folder of the test."""

    def __init__(self, releases: Path, tokenizer: Tokenizer, kept_in: Path):
        self.releases, self.tokenizer, self.kept_in = releases, tokenizer, kept_in

    def __call__(self, suite: str, **request: object) -> SuitePrompts:
        rows = SuiteRows.open(suite_of(suite), self.releases)
        settings = EvalRequest(**request).settings(rows)  # type: ignore[arg-type]
        return SuitePrompts(rows, settings, self.tokenizer, self.kept_in)


@pytest.fixture
def make_prompts(releases: Path, made_tokenizer: Tokenizer, tmp_path: Path) -> MakePrompts:
    return MakePrompts(releases, made_tokenizer, tmp_path / "prompts")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test alone, but for the index of lm-eval's tasks, which takes 10 s to make."""
    index = cache_folder() / "lm-eval"
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "lm-eval").symlink_to(index)
    monkeypatch.setenv("BC2_CACHE", str(folder))
    return folder
