"""``micro_batch = "auto"``: the largest that fits, by real steps in a child."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from bc2 import recipe
from bc2.cli import main
from bc2.errors import RecipeError, ResourceError, RunFailed
from bc2.model.model_config import ModelConfig
from bc2.pipeline.session import Session
from bc2.registry import Registry
from bc2.train import micro_batch
from bc2.train.micro_batch import (
    MARGIN,
    _allowed,
    _expected,
    _largest,
    _tried,
    choose_micro_batch,
)
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_spec import TrainingSpec
from bc2.train.trial_spec import TrialSpec
from bc2.train.worker_process import WorkerFailed, WorkerProcess

MODEL = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2
)
TRAINING = PretrainConfig(
    length="10 steps", batch_tokens=24 * 256, micro_batch="auto", sequence_length=256,
    precision="fp32", device="cpu",
)  # fmt: skip
SETTINGS = TrainingSpec(algorithm="pretrain", model=MODEL, training=TRAINING).settings
DIVISORS = [1, 2, 3, 4, 6, 8, 12, 24]
PLENTY = 1 << 40


@pytest.mark.parametrize("most", range(10))
def test_the_largest_that_fits_is_found(most: int) -> None:
    fitting = [n for n in DIVISORS if n <= most]
    assert _largest(DIVISORS, lambda n: n <= most) == (fitting[-1] if fitting else None)


def test_with_a_limit_the_largest_fitting_divisor_is_taken() -> None:
    spec = TrialSpec(algorithm="pretrain", model=MODEL, training=TRAINING, margin=MARGIN)
    with WorkerProcess("bc2.train.micro_batch_trial", spec.model_dump_json()) as trial:
        needs = _expected(spec, trial, DIVISORS, PLENTY)
    sizes = [needs(micro_batch) for micro_batch in DIVISORS]
    assert sizes == sorted(set(sizes))
    # a step on one sequence of this model holds its weights, moments, gradients and a save's copy
    assert sizes[0] > 28 * MODEL.num_params()
    for place, size in enumerate(sizes):
        just = int(size / (1 - MARGIN)) + 2
        assert largest_in(just, needs) == DIVISORS[place]
        assert largest_in(just - size // 100, needs) == (DIVISORS[place - 1] if place else None)


def largest_in(free: int, needs: Callable[[int], int]) -> int | None:
    return _largest(DIVISORS, lambda n: needs(n) <= _allowed(free))


def test_an_earlier_choice_is_taken_again_while_it_fits() -> None:
    assert choose_micro_batch(SETTINGS, available=PLENTY).micro_batch == 24
    again = choose_micro_batch(SETTINGS, earlier=6, available=PLENTY)
    assert (again.micro_batch, again.again) == (6, True)
    assert "what the earlier attempt chose" in str(again)


def test_not_even_one_row_fits() -> None:
    with pytest.raises(ResourceError, match="not even micro-batches of one sequence") as caught:
        choose_micro_batch(SETTINGS, available=1_000_000)
    assert caught.value.exit_code == 6
    assert caught.value.todo is not None
    assert "activation_checkpointing" in caught.value.todo


class Device:
    """Answers as a trial on a GPU does that has room for `most` sequences."""

    def __init__(self, most: int):
        self.most = most
        self.asked: list[int] = []

    def begin(self) -> None:
        pass

    def ask(self, do: str, micro_batch: int) -> dict[str, Any]:
        self.asked.append(micro_batch)
        return {"fits": micro_batch <= self.most, "bytes": micro_batch}


@pytest.mark.parametrize(("most", "expected"), [(24, 24), (7, 6), (1, 1), (0, None)])
def test_on_a_gpu_each_size_is_tried_at_most_once(most: int, expected: int | None) -> None:
    spec = TrialSpec(algorithm="pretrain", model=MODEL, training=TRAINING, margin=MARGIN)
    device = Device(most)
    needs = _tried(spec, device, DIVISORS, 1000)  # type: ignore[arg-type]
    assert _largest(DIVISORS, lambda n: needs(n) <= 930) == expected
    assert len(device.asked) == len(set(device.asked)) <= 4


class Broken:
    """A trial that fails when it is built."""

    def __init__(self, failure: WorkerFailed):
        self.failure = failure

    def __call__(self, module: str, first: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self) -> None:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "expected", "said"),
    [
        (
            WorkerFailed("OutOfMemoryError: CUDA out of memory", out_of_memory=True),
            ResourceError, "not even micro-batches of one sequence .* OutOfMemoryError",
        ),
        (
            WorkerFailed("ValueError: no kernel for this"),
            RunFailed, "no micro-batch could be tried on cuda:0: ValueError: no kernel for this",
        ),
    ],
)  # fmt: skip
def test_only_a_lack_of_memory_is_told_as_one(
    failure: WorkerFailed, expected: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batch, "WorkerProcess", Broken(failure))
    settings = SETTINGS.with_training(device="cuda:0")
    with pytest.raises(expected, match=said):
        choose_micro_batch(settings, available=PLENTY)


AUTO = 'pretrain.micro_batch="auto"'


def test_a_run_says_records_and_keeps_what_auto_came_to(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open()
    short = ("pretrain.length=6 steps", "pretrain.keep_checkpoints=0")

    def train(*overrides: str) -> Any:
        loaded = recipe.load("small.toml", [*short, *overrides])
        return Session(registry).obtain("checkpoint", loaded, command=["bc2"])

    fixed = train()
    (folder,) = registry.runs.iterdir()
    for artifact in registry.list("checkpoint"):
        registry.remove(artifact)
    (folder / micro_batch.MICRO_BATCH_FILE).write_text('{"micro_batch": 2}')
    chosen = train(AUTO)
    assert 'micro_batch = "auto" is 2, what the earlier attempt chose' in capsys.readouterr().err
    starts = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert [row["micro_batch"] for row in starts if row["event"] == "start"] == [4, 2]
    # how it was cut is no part of what the run is
    assert chosen.key == fixed.key
    registry.remove(chosen)
    for artifact in registry.list("checkpoint"):
        registry.remove(artifact)
    (folder / micro_batch.MICRO_BATCH_FILE).write_text("[3]")
    train(AUTO)
    err = capsys.readouterr().err
    assert "names no micro-batch of this run" in err
    assert 'micro_batch = "auto" is 8, the largest that fits' in err
    assert json.loads((folder / micro_batch.MICRO_BATCH_FILE).read_text()) == {"micro_batch": 8}


def test_too_little_memory_ends_with_exit_6(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_batch, "device_available", lambda device: 100_000)
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", "small.toml", "--set", AUTO])
    assert caught.value.code == 6
    assert (
        "error: not even micro-batches of one sequence of 64 tokens fit" in capsys.readouterr().err
    )
    assert Registry.open().list("checkpoint") == []


@pytest.mark.parametrize("value", ["0", "-1", '"large"', "1.5", "true"])
def test_what_micro_batch_cannot_be(small: Path, value: str) -> None:
    loaded = recipe.load("small.toml", [f"pretrain.micro_batch={value}"])
    with pytest.raises(RecipeError, match='a number of sequences above 0, or "auto"') as caught:
        loaded.get(PretrainConfig)
    assert caught.value.where == f"--set pretrain.micro_batch={value}"


def test_auto_needs_whole_rows(small: Path) -> None:
    loaded = recipe.load("small.toml", [AUTO, "pretrain.batch_tokens=500"])
    with pytest.raises(RecipeError, match="448 or 512 would be"):
        loaded.get(PretrainConfig)
