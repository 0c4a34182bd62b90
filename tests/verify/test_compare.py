"""Comparing finished checkpoints of two runs: to the bit, and by samples and losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bc2.registry import Artifact, Draft, Registry
from bc2.train.metric import Metric, Metrics
from bc2.train.pretrain.pretrain_metrics import PRETRAIN_METRICS
from bc2.verify.compare import compare_bits, compare_losses, first_file


def rows(steps: int, **changed: Any) -> list[dict[str, Any]]:
    """Metrics of a run; `changed`: ``loss7=1.0`` for the loss of step 7."""
    return [
        {
            "event": "step",
            "step": step,
            "samples": [8 * step - 8, 8 * step - 1 + changed.get(f"more{step}", 0)],
            "loss": changed.get(f"loss{step}", 2.0),
        }
        for step in range(1, steps + 1)
    ]


def checkpoint(
    registry: Registry, metrics: list[dict[str, Any]], weight: float = 1.0, name: str = "x"
) -> Artifact:
    with registry.stage(Draft("checkpoint", name, "0" * 64)) as staged:
        tensors = {"a": np.ones(4, np.float32), "b": np.full((2, 2), weight, np.float32)}
        save_file(tensors, staged.path / "model.safetensors")
        text = "".join(json.dumps(row) + "\n" for row in metrics)
        (staged.path / "metrics.jsonl").write_text(text)
        return staged.publish()


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    one = checkpoint(registry, rows(4))
    assert compare_bits(one, one)[0] is None
    assert compare_losses(one, one, PRETRAIN_METRICS, 2, 1e-5)[0] is None
    row = checkpoint(registry, rows(4, loss3=2.5), 1.5)
    expected = "step 3, samples [16, 23]: loss of the step is 2.0 and 2.5"
    assert compare_bits(one, row)[0] == expected
    tensor = checkpoint(registry, rows(4), 1.5)
    assert compare_bits(one, tensor)[0] == "the tensor b of model.safetensors: 4 of 4 numbers"
    assert load_file(tensor.path / "model.safetensors")["b"].max() == 1.5
    shorter = checkpoint(registry, rows(3))
    assert compare_bits(one, shorter)[0] == "4 rows of metrics, and 3"
    renamed = checkpoint(registry, rows(4), name="y")
    assert compare_bits(one, renamed)[0] == f"the digests {one.ref} and {renamed.ref}"


def test_losses_and_samples_of_another_layout(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    one = checkpoint(registry, rows(4))
    close = checkpoint(registry, rows(4, loss2=2.00001))
    found, figures = compare_losses(one, close, PRETRAIN_METRICS, 1, 1e-5)
    assert found is None
    assert figures["at_step"] == 2
    assert figures["largest_relative"] == pytest.approx(5e-6)
    sampled = checkpoint(registry, [*rows(4), {"event": "sample", "step": 4, "text": "so"}])
    assert compare_losses(one, sampled, PRETRAIN_METRICS, 1, 1e-5)[0] is None
    far = checkpoint(registry, rows(4, loss2=2.0001))
    expected = "step 2, samples [8, 15]: losses are 5.0e-05 apart, relative"
    assert compare_losses(one, far, PRETRAIN_METRICS, 1, 1e-5)[0] == expected
    broken = checkpoint(registry, rows(4, loss2="nan"))
    expected = "step 2, samples [8, 15]: losses are inf apart, relative"
    assert compare_losses(one, broken, PRETRAIN_METRICS, 1, 1e-5)[0] == expected
    other = checkpoint(registry, rows(4, more2=1))
    assert compare_losses(one, other, PRETRAIN_METRICS, 1, 1e-5)[0] == (
        "step 2: step with samples [8, 15], and step with [8, 16]"
    )


def test_files_and_tensors_of_one_checkpoint_alone(tmp_path: Path) -> None:
    """Where the logs are the same, and what is missing or differs is another file."""
    registry = Registry.open(tmp_path / "home")

    def with_files(seed: int, **files: bytes) -> Artifact:
        with registry.stage(Draft("checkpoint", "x", f"{seed:064}")) as staged:
            (staged.path / "metrics.jsonl").write_text("")
            for name, data in files.items():
                (staged.path / name).write_bytes(data)
            return staged.publish()

    one, same = with_files(1, a=b"1"), with_files(2, a=b"1")
    assert first_file(one, same) is None
    assert first_file(one, with_files(3, a=b"2")) == "the file a"
    assert first_file(one, with_files(4, a=b"1", b=b"2")) == "b is in one checkpoint alone"
    assert first_file(one, with_files(5)) == "a is in one checkpoint alone"


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        ({"a": np.ones(4, np.float32)}, "the tensor b is in one model.safetensors alone"),
        (
            {"a": np.ones(4, np.float32), "b": np.ones(3, np.float32)},
            "the tensor b of model.safetensors: 2 of 2 numbers",
        ),
        (
            {"a": np.array([1, 1, 1, np.nan], np.float32), "b": np.zeros(2, np.float32)},
            "the tensor a of model.safetensors: 1 of 4 numbers",
        ),
        (
            {
                "b": np.zeros(2, np.float32),
                "a": np.ones(4, np.float32),
                "c": np.ones(1, np.float32),
            },
            "the header of model.safetensors",
        ),
    ],
)
def test_the_first_tensor_that_differs(
    tmp_path: Path, theirs: dict[str, np.ndarray], found: str
) -> None:
    registry = Registry.open(tmp_path / "home")

    def of(tensors: dict[str, np.ndarray], seed: int) -> Artifact:
        with registry.stage(Draft("checkpoint", "x", f"{seed:064}")) as staged:
            save_file(tensors, staged.path / "model.safetensors")
            return staged.publish()

    mine = {"a": np.ones(4, np.float32), "b": np.zeros(2, np.float32)}
    assert first_file(of(mine, 1), of(theirs, 2)) == found


def test_fewer_rows_of_another_layout(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    one, shorter = checkpoint(registry, rows(4)), checkpoint(registry, rows(3))
    assert compare_losses(one, shorter, PRETRAIN_METRICS, 0, 1e-5)[0] == "4 rows of metrics, and 3"


PAIRS = Metrics(
    (
        Metric("margin", "margin", better="higher", headline=True),
        Metric("value_loss", "value loss", better="lower"),
        Metric("accuracy", "accuracy", of="evaluation", better="higher"),
        Metric("pair_loss", "held-out loss", of="evaluation", better="lower"),
    )
)


def pairs(**changed: Any) -> list[dict[str, Any]]:
    """Three steps, of which the second has no value loss, and an evaluation."""
    found: list[dict[str, Any]] = [
        {"event": "step", "step": step, "samples": [step, step], "margin": 1e-4, "value_loss": 0.5}
        for step in (1, 2, 3)
    ]
    del found[1]["value_loss"]
    found.append({"event": "eval", "step": 3, "accuracy": 0.5, "pair_loss": 0.7})
    for name, value in changed.items():
        row = found[-1] if name in found[-1] else found[2]
        row[name] = value
    return found


def test_the_declared_losses_are_compared_whatever_they_are_called(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    one = checkpoint(registry, pairs())
    # What is no loss is told and not judged: here a margin near 0, and one sample that flips.
    others = checkpoint(registry, pairs(margin=2e-4, accuracy=0.625))
    found, figures = compare_losses(one, others, PAIRS, 0, 1e-5)
    assert found is None
    assert figures["other_metrics"] == {"margin": pytest.approx(1.0), "accuracy": 0.25}
    assert (figures["losses"], figures["largest_relative"]) == (3, 0.0)
    for name, expected in (
        ("value_loss", "step 3, samples [3, 3]: losses are 1.0e+00 apart, relative"),
        ("pair_loss", "step 3: losses are 4.3e-01 apart, relative"),
    ):
        far = checkpoint(registry, pairs(**{name: 1.0}))
        assert compare_losses(one, far, PAIRS, 0, 1e-5)[0] == expected
    missing = pairs()
    del missing[2]["value_loss"]
    expected = "step 3, samples [3, 3]: losses are inf apart, relative"
    for mine, theirs in (
        (one, checkpoint(registry, missing)),
        (checkpoint(registry, missing), one),
    ):
        assert compare_losses(mine, theirs, PAIRS, 0, 1e-5)[0] == expected
    broken = checkpoint(registry, pairs(accuracy="nan"))
    assert compare_losses(one, broken, PAIRS, 0, 1e-5)[1]["other_metrics"]["accuracy"] is None


def test_where_no_metric_is_a_loss_all_are_compared(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    rewards = Metrics((Metric("margin", "margin", better="higher", headline=True),))
    one, far = checkpoint(registry, pairs()), checkpoint(registry, pairs(margin=2e-4))
    assert compare_losses(one, one, rewards, 0, 1e-5)[0] is None
    expected = "step 3, samples [3, 3]: losses are 1.0e+00 apart, relative"
    assert compare_losses(one, far, rewards, 0, 1e-5)[0] == expected
