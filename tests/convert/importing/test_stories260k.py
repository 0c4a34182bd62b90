"""A real Llama, imported: it tells the stories that it tells in transformers, and learns on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stories260k
import torch
import transformers

from bc2 import recipe
from bc2.convert.importing.import_model import import_model
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.store import load_config, load_model
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.logs.log_rows import METRICS, read_rows

FOLDER = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute() / "models/stories260K"

pytestmark = pytest.mark.slow

BOS = 1


@pytest.fixture(scope="module")
def file() -> stories260k.Gguf:
    if not FOLDER.exists():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    return stories260k.read(FOLDER / "stories260K.gguf")


@pytest.fixture(scope="module")
def theirs(file: stories260k.Gguf) -> Any:
    return stories260k.model_of(file)


@pytest.fixture
def imported(file: stories260k.Gguf, home: Path, tmp_path: Path) -> Artifact:
    stories260k.write(file, tmp_path / "stories260K")
    return import_model(Registry.open(), tmp_path / "stories260K")


def said(theirs: Any, ids: list[int], count: int, *, draws: bool = False) -> list[int]:
    torch.manual_seed(0)
    given = torch.tensor([ids])
    settings = transformers.GenerationConfig(
        do_sample=draws, max_new_tokens=count, pad_token_id=0,
        eos_token_id=512,  # of no row: None would be the model's own
    )  # fmt: skip
    made = theirs.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
    found: list[int] = made[0, len(ids) :].tolist()
    return found


def test_the_original_is_read_rightly(file: stories260k.Gguf, theirs: Any) -> None:
    """It says English, which no wrong reading of its weights would."""
    tokenizer = Tokenizer.from_bytes(stories260k.tokenizer_of(file))
    text = tokenizer.generated_bytes(said(theirs, [BOS], 64)).decode()
    assert "once upon a time" in text.lower()


def test_greedy_tokens_are_those_of_transformers(theirs: Any, imported: Artifact) -> None:
    config = load_config(imported.path)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (5, 8, 4)
    assert config.tied
    tokenizer = Tokenizer.load(imported.path)
    engine = InferenceEngine(
        load_model(imported.path, dtype=torch.float32), EngineConfig(cache_bytes=2**25), eos_id=-1
    )
    texts = ["", "Once upon a time", "Lily and Tom went to", "The big dog was sad. He", "天"]
    prompts = [[BOS, *tokenizer.encode(text)] for text in texts]
    for count in (64, 400):
        settings = SamplingConfig(temperature=0.0, max_new_tokens=count)
        answers = engine.generate([Request(prompt, settings) for prompt in prompts])
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.continuations[0].ids == said(theirs, prompt, count)


def test_the_command_tells_the_same_story(
    theirs: Any, imported: Artifact, bc2: Callable[..., Any]
) -> None:
    prompt = "Once upon a time, there was a little girl"
    tokenizer = Tokenizer.load(imported.path)
    options = ("--temperature", 0, "--max-new-tokens", 200, "--ignore-eos", "--json")
    done = bc2("generate", imported.ref, prompt, *options)
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    expected = said(theirs, [BOS, *tokenizer.encode(prompt)], 200)
    assert result["text"] == tokenizer.generated_bytes(expected).decode()


def test_it_learns_on_from_its_stories(theirs: Any, imported: Artifact, tmp_path: Path) -> None:
    """It knows them: its loss begins near what they have in them, and does not rise."""
    tokenizer = Tokenizer.load(imported.path)
    stories = [
        tokenizer.generated_bytes(said(theirs, [BOS, *tokenizer.encode(name)], 400, draws=True))
        for name in ("Once", "Lily", "Tom", "One day", "The", "A dog", "Sam", "Mom")
    ]
    rows = [json.dumps({"text": story.decode("utf-8", "ignore")}) for story in stories]
    (tmp_path / "stories.jsonl").write_text("\n".join(rows) + "\n")
    (parent,) = Registry.open().parents(imported)
    model = load_config(imported.path).keyed()
    lines = [
        'name = "on"', "[corpus]\nheldout_fraction = 0.1",
        '[[corpus.sources]]\nname = "stories"\npath = "stories.jsonl"',
        f'[tokens]\ntokenizer = "{parent.digest[:16]}"', "[model]",
        *(f"{key} = {json.dumps(value)}" for key, value in model.items() if value is not None),
        f'[pretrain]\ninit = "{imported.digest[:16]}"\nlength = "20 steps"\nz_loss = 0',
        'batch_tokens = 1024\nmicro_batch = 8\nsequence_length = 128\nprecision = "fp32"',
        'sample_prompts = 0\nschedule = { warmup = "2 steps" }',
        "optimizer = { learning_rate = 1e-3 }",
    ]  # fmt: skip
    (tmp_path / "on.toml").write_text("\n".join(lines) + "\n")
    trained = Session(Registry.open()).obtain("checkpoint", recipe.load("on.toml"), command=["bc2"])
    steps = [row["ce"] for row in read_rows(trained.file(METRICS)) if row["event"] == "step"]
    assert len(steps) == 20
    assert steps[0] < 2.5, "an untrained model of 512 pieces begins at 6.2"
    assert sum(steps[-4:]) < 4 * steps[0]
