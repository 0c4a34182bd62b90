"""Every field of every section with the extremes of its type: refused by name, or a run can begin.

What `bc2 recipe check` accepts must come as far as where data is read: `START` says how for each
section. A new section needs an example in `EXAMPLES` and a start there; its fields are found.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from bc2 import recipe
from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.samples.packing import pack_rows, repeated
from bc2.align.sft.sft_config import SftConfig
from bc2.convert.merging.merge_config import MergeConfig
from bc2.convert.merging.merge_models import merge_models
from bc2.data import sample
from bc2.data.chats.chats_config import ChatsConfig
from bc2.data.chats.make_chats import make_chats
from bc2.data.corpus_config import CorpusConfig, TokensConfig
from bc2.data.inputs import inputs
from bc2.data.mixture import Mixture, stratum_weights
from bc2.data.pairs.make_pairs import make_pairs
from bc2.data.pairs.pairs_config import PairsConfig
from bc2.data.prep.stage_table import build_stages
from bc2.errors import Bc2Error, RecipeError, RefError
from bc2.model.transformer import Transformer
from bc2.pipeline.table import check_recipe
from bc2.plan.check import check_memory_fits
from bc2.plan.devices import find_device
from bc2.plan.training_plan import make_plan
from bc2.recipe import SECTIONS, Recipe, section_class
from bc2.registry import Registry
from bc2.scaling.ladder import read_ladder
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import options
from bc2.train.device import pick_device
from bc2.train.loss_guard import LossGuard
from bc2.train.optimizer import make_optimizer
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.schedule import Schedule
from bc2.train.training_settings import TrainingSettings

TRAINING = """
[model]
vocab_size = 600
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
context_length = 64

[pretrain]
length = "20 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
weights = { text = 1.0 }

[pretrain.schedule]
warmup = "2 steps"

[parallel]
"""

CORPUS = """
[[corpus.sources]]
name = "text"
path = "text.jsonl"
"""

PAIRED = (
    TRAINING.partition("[pretrain]")[0]
    + """
[{section}]
init = "checkpoint/base"
length = "20 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64

[{section}.schedule]
[{section}.optimizer]
[{section}.lora]
[parallel]
"""
)

#: A recipe for each section, with an item in each of its lists of tables.
EXAMPLES = {
    "corpus": CORPUS
    + """
[corpus.normalise]
[corpus.heuristics]
[corpus.quality]
[corpus.passages]
[corpus.near]
[corpus.dense]
[[corpus.safety.word_lists]]
name = "list"
path = "words.txt"
[[corpus.decontaminate.benchmarks]]
name = "bench"
path = "text.jsonl"
fields = ["text"]
[corpus.clusters]
[corpus.weights]
""",
    "tokenizer": CORPUS + "[tokenizer]\nvocab_size = 600",
    "tokens": CORPUS + "[tokenizer]\nvocab_size = 600\n[tokens]",
    "chats": """
[chats]
heldout_fraction = 0.0
[[chats.sources]]
name = "text"
path = "chats.jsonl"
""",
    "pairs": """
[pairs]
heldout_fraction = 0.0
[[pairs.sources]]
name = "text"
path = "pairs.jsonl"
""",
    "model": TRAINING,
    "parallel": TRAINING,
    "pretrain": CORPUS + "[tokenizer]\nvocab_size = 600\n" + TRAINING,
    "sft": TRAINING.partition("[pretrain]")[0]
    + """
[sft]
init = "checkpoint/base"
length = "20 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64

[sft.schedule]
[sft.optimizer]
[sft.lora]
[parallel]
""",
    "reward": PAIRED.format(section="reward"),
    "dpo": PAIRED.format(section="dpo"),
    "ladder": TRAINING
    + """
[ladder]
reference_params = 20_000

[[ladder.members]]
model = { hidden_size = 32, intermediate_size = 64, num_layers = 2, num_heads = 2 }
length = "30 steps"

[ladder.extrapolation]
model = { hidden_size = 64, intermediate_size = 128, num_layers = 2, num_heads = 2 }
length = "40 steps"
""",
    "merge": """
[merge]
method = "linear"

[[merge.models]]
ref = "one"

[[merge.models]]
ref = "two"
""",
}

INTEGERS = [-(2**63), -1, 0, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**26]
FLOATS = [-0.0, 0.5, 1.0, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan]
STRINGS = [
    "", "x" * 300, "语" * 300, "a\0b", "a\nb", "a\udcffb", "..", "//nosuch", "~", "~nosuchuser",
    "x.toml", f"{'9' * 26} steps", f"{2**63 - 1} tokens", f"{2**63 - 1} epochs", "1 steps",
    "0 steps", "0.001 epochs", "٣ steps", "cuda:99999999999999999999", "(" * 300,
    "{KIND:>9999999999}", "a{99999999999999999999}",
]  # fmt: skip
LISTS: list[list[Any]] = [[], [0.0, 0.0], [1.0, 1.0], ["x", "x"], [["x"]], [{}], [5e-324, 1e308]]
TABLES: list[dict[str, Any]] = [
    {}, {"x": 1}, {"": 1.0}, {"text": 5e-324}, {"text": 0.0}, {"text": 1e308}, {"text": -1.0},
    {"txet": 1.0}, {"a\0": 1.0}, {"x": "("}, {"²": 0.5}, {"2": 0.5}, {"9" * 30: 0.5},
]  # fmt: skip
EXTREMES: list[Any] = [*INTEGERS, *FLOATS, *STRINGS, *LISTS, *TABLES, True, False]

#: What is tried by default, by the words of a field's type; all of it is tried of every field by
#: `make test-slow`.
OF_TYPE: dict[str, list[Any]] = {
    "int": [-1, 0, 2**31, 2**63 - 1, 2**63, 2**64, 10**26],
    "float": [-0.0, 5e-324, 1e308, math.inf, math.nan],
    "str": STRINGS,
    "tuple": LISTS,
    "dict": TABLES,
}


def toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """The tables that may stand in a field, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    for argument in getattr(annotation, "__args__", ()):
        listed = getattr(annotation, "__origin__", None) in (tuple, list)
        yield from ((model, inside or listed) for model, inside in models_in(argument))


def fields(cls: type[BaseModel], at: str) -> Iterator[tuple[str, list[Any]]]:
    """Every field by its dotted name, and the extremes of its type."""
    for name, info in cls.model_fields.items():
        words = re.findall(r"[a-z]+", str(info.annotation))
        extremes = [value for kind in OF_TYPE if kind in words for value in OF_TYPE[kind]]
        yield f"{at}.{name}", [*extremes, "", 1, True]
        for model, listed in models_in(info.annotation):
            yield from fields(model, f"{at}.{name}.0" if listed else f"{at}.{name}")


FIELDS = dict(field for name in SECTIONS for field in fields(section_class(name), name))


def start_corpus(loaded: Recipe) -> None:
    config = loaded.get(CorpusConfig)
    if any(source.hf for source in config.sources):
        return  # asks the hub
    build_stages(config)
    inputs(config)


def start_tokenizer(loaded: Recipe) -> None:
    config = loaded.get(TokenizerConfig)
    json.dumps(options(config))
    sample._targets({"text": 10**6}, config.sample_bytes, config.weights)
    sample.sample_rank(config.seed, "id")
    if config.corpus is not None and not config.corpus.endswith(".toml"):
        Registry.open().resolve(config.corpus, "corpus")


def start_tokens(loaded: Recipe) -> None:
    config = loaded.get(TokensConfig)
    if config.corpus is not None and not config.corpus.endswith(".toml"):
        Registry.open().resolve(config.corpus, "corpus")


def start_chats(loaded: Recipe) -> None:
    config = loaded.get(ChatsConfig)
    if any(source.hf for source in config.sources):
        return  # asks the hub
    out = Path("chats")
    out.mkdir(exist_ok=True)
    inputs(config)
    make_chats(config, out)
    json.dumps(config.keyed()).encode()


def start_pairs(loaded: Recipe) -> None:
    config = loaded.get(PairsConfig)
    if any(source.hf for source in config.sources):
        return  # asks the hub
    out = Path("pairs")
    out.mkdir(exist_ok=True)
    inputs(config)
    make_pairs(config, out)
    json.dumps(config.keyed()).encode()


def start_training(loaded: Recipe) -> None:
    settings = TrainingSettings.of(loaded)
    training = settings.training
    assert isinstance(training, PretrainConfig)
    start_run(loaded, settings)
    if training.tokens is not None and not training.tokens.endswith(".toml"):
        Registry.open().resolve(training.tokens, "tokens")
    weights = stratum_weights({"text": 1000}, training.weights, None, str)
    mixture = Mixture({"text": 1000}, weights, training.seed)
    mixture.locate(torch.arange(4).numpy())
    start_steps(settings, 1000)


def start_sft(loaded: Recipe) -> None:
    settings = TrainingSettings.of(loaded)
    training = settings.training
    assert isinstance(training, SftConfig)
    start_run(loaded, settings)
    if training.chats is not None and not training.chats.endswith(".toml"):
        Registry.open().resolve(training.chats, "chats")
    lengths = np.ones(8, np.int32)
    entries = repeated(np.full(8, 1.5), training.seed)
    rows = pack_rows(lengths[entries], training.sequence_length, training.seed, 0)
    start_steps(settings, len(rows))


def start_preference(loaded: Recipe) -> None:
    settings = TrainingSettings.of(loaded)
    training = settings.training
    assert isinstance(training, PreferenceConfig)
    start_run(loaded, settings)
    if training.pairs is not None and not training.pairs.endswith(".toml"):
        Registry.open().resolve(training.pairs, "pairs")
    start_steps(settings, 8)


def start_run(loaded: Recipe, settings: TrainingSettings) -> None:
    """What every algorithm's run begins with."""
    for world in (1, 8):
        _, refused = attempt(partial(settings.check_ranks, world))
        assert refused is None or refused.todo
    device = find_device("h100", count=8, memory=None, flops=None, price=None)
    _, refused = attempt(lambda: make_plan(loaded, device, 8).as_json())
    assert refused is None or refused.todo
    pick_device(settings.training.device)
    check_memory_fits(settings, 1, 1, available=10**13)
    torch.Generator().manual_seed(settings.training.seed)
    with torch.device("meta"):
        model = Transformer(settings.model)
        for role in settings.models:
            if role.adapters is not None:
                role.adapters(model)


def start_steps(settings: TrainingSettings, rows: int) -> None:
    """Guard, schedule and optimizer of a run over so many rows."""
    training = settings.training
    assert isinstance(training, PretrainConfig | SftConfig | PreferenceConfig)
    schedule = Schedule.of(training, epoch_tokens=rows * training.sequence_length)
    for step in (0, 1, schedule.total // 2, schedule.total - 1):
        assert math.isfinite(schedule.learning_rate(step, peak=training.optimizer.learning_rate))
    LossGuard(training.guard).judge({"loss": 1.0, "grad_norm": 1.0})
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer({"w": weight}, {"w": (2, 2)}, training.optimizer)
    optimizer.prepare(
        schedule.learning_rate(0, peak=1.0), norm=1.0, clip_norm=training.optimizer.clip_norm
    )


def start_ladder(loaded: Recipe) -> None:
    read_ladder(str(loaded.path), list(loaded.overrides.values()))


def start_merge(loaded: Recipe) -> None:
    config = loaded.get(MergeConfig)
    assert all(map(math.isfinite, config.weights))
    assert len(config.weights) == len(config.densities) == len(config.models)
    json.dumps(config.keyed()).encode()
    # Refs come first, and here is nothing that answers to one.
    _, refused = attempt(lambda: merge_models(Registry.open(), loaded))
    assert isinstance(refused, RefError)
    assert refused.where is not None


START: dict[str, Callable[[Recipe], None]] = {
    "corpus": start_corpus,
    "tokenizer": start_tokenizer,
    "tokens": start_tokens,
    "chats": start_chats,
    "pairs": start_pairs,
    "model": start_training,
    "parallel": start_training,
    "pretrain": start_training,
    "sft": start_sft,
    "reward": start_preference,
    "dpo": start_preference,
    "ladder": start_ladder,
    "merge": start_merge,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "words.txt").write_text("bad\n")
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n{text}')
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_has_an_example_that_starts(folder: Path, section: str) -> None:
    loaded = recipe.load(f"{section}.toml")
    check_recipe(loaded)
    START[section](loaded)


@pytest.mark.parametrize("field", FIELDS)
def test_extremes_are_refused_by_name_or_start(folder: Path, field: str) -> None:
    check_extremes(field, FIELDS[field])


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_extremes_of_other_types_too(folder: Path, field: str) -> None:
    check_extremes(field, EXTREMES)


def check_extremes(field: str, extremes: list[Any]) -> None:
    section, key = field.partition(".")[0], field.rpartition(".")[2]
    for value in extremes:
        override = f"{field}={toml(value)}"
        loaded, refused = attempt(lambda: checked(section, override))  # noqa: B023
        if loaded is None:
            assert isinstance(refused, RecipeError), (override, refused)
            assert key in str(refused), (override, refused)
            continue
        _, refused = attempt(lambda: START[section](loaded))  # noqa: B023
        # Of bad usage, input that is not there, a ref, a machine too small: never a defect.
        assert refused is None or refused.exit_code in (2, 3, 4, 6), (override, refused)


def checked(section: str, override: str) -> Recipe:
    """What `bc2 recipe check` accepts."""
    loaded = recipe.load(f"{section}.toml", [override])
    check_recipe(loaded)
    return loaded


Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> tuple[Result | None, Bc2Error | None]:
    """What it returns, or the error that a person is told; any other exception is a defect."""
    try:
        return work(), None
    except Bc2Error as error:
        str(error).encode()
        return None, error
