"""A benchmark of another algorithm than pretraining: its own data, and all of its models."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.bench.bench_plan import make_bench_plan
from bc2.bench.contenders import Ours
from bc2.bench.made_data import made_steps, work_of_step
from bc2.bench.measure import BenchPlan, _estimate, run_benchmark
from bc2.bench.render import setup_lines
from bc2.console import progress
from bc2.errors import RecipeError, UsageError
from bc2.parallel.mesh import Group, Mesh
from bc2.recipe import load
from bc2.train.memory.run_memory import estimate_run
from bc2.train.training_settings import TrainingSettings


def planned(recipe: Path, *sets: str, **asked: Any) -> BenchPlan:
    options = {
        "steps": 2, "rounds": 1, "against": None, "peers": None, "ours": None, "layouts": (),
        "checkpointing": None, "peer_environment": "same", "documents": 0, "checkpoint": True,
    }  # fmt: skip
    return make_bench_plan(load(recipe, sets), **{**options, **asked})


def test_it_has_no_peer_and_no_documents(two_models: Path) -> None:
    with pytest.raises(UsageError, match=r"trains \[two_models\]") as caught:
        planned(two_models, against="hf")
    assert "--against" in str(caught.value.todo)
    with pytest.raises(UsageError, match="--documents"):
        planned(two_models, documents=100)


def test_a_layout_must_divide_every_model(two_models: Path) -> None:
    """The policy has two heads, and the critic one."""
    with pytest.raises(RecipeError, match=r"critic: .* does not divide model\.num_heads = 1"):
        planned(two_models, layouts=("2:tensor=2",))


def test_ranks_share_a_step_that_is_drawn_by_the_seed(two_models: Path) -> None:
    settings = TrainingSettings.of(load(two_models))

    def of_rank(rank: int) -> Any:
        return next(made_steps(settings, Mesh(data=Group((0, 1), rank))))

    first, second = of_rank(0), of_rank(1)
    assert [len(step.batches) for step in (first, second)] == [2, 2]
    assert first.sequences == 16
    tokens = [batch.tokens for step in (first, second) for batch in step.batches]
    assert len({array.tobytes() for array in tokens}) == 4
    assert all(array.shape == (4, 64) for array in tokens)
    np.testing.assert_array_equal(of_rank(1).batches[0].tokens, tokens[2])


def test_all_models_are_counted(two_models: Path) -> None:
    settings = TrainingSettings.of(load(two_models))
    policy, critic, _ = (role.model.flops_per_token(64) for role in settings.models)
    assert work_of_step(settings) == (16 * 64, policy + critic + policy // 3)
    plan = planned(two_models)
    expected = _estimate(plan.contenders[0])
    assert expected is not None
    assert expected["total"] == estimate_run(plan.contenders[0].settings, 1).total


def test_pretraining_counts_as_its_settings_say() -> None:
    settings = TrainingSettings.of(load("tiny"), trains=False).with_training(micro_batch=1)
    training = settings.training
    expected = settings.model.flops_per_token(training.sequence_length)
    assert work_of_step(settings) == (training.step_tokens, expected)


def test_every_model_learns_and_the_headline_is_what_a_step_returns(two_models: Path) -> None:
    with ExitStack() as held:
        ours = Ours(planned(two_models).contenders[0], held)
        engines = {role: one.engine for role, one in ours.models.models.items()}
        before = {
            role: [weight.clone() for weight in engine.model.parameters()]
            for role, engine in engines.items()
        }
        found = ours.step()
    assert 0 < found < 1  # the mean of rewards that are drawn from 0 to 1
    assert list(engines) == ["policy", "critic"]
    for role, engine in engines.items():
        now = list(engine.model.parameters())
        assert any(not one.equal(other) for one, other in zip(before[role], now, strict=True))


@pytest.mark.slow
def test_it_is_measured_with_its_checkpoints(two_models: Path, tmp_path: Path) -> None:
    plan = planned(two_models)
    header = {
        "id": "x", "time": "t", "recipe": {},
        "machine": {"packages": {}, "cpu": "c", "cores": 1, "device": "cpu"},
        "settings": {
            "algorithm": "two_models", "headline": "mean reward", "precision": "fp32",
            "device": "cpu", "rounds": 1, "steps": 2,
        },
    }  # fmt: skip
    with progress("test", None) as bar:
        result = run_benchmark(plan, tmp_path / "scratch", bar, header)
    (found,) = result.contenders
    assert found.failed is None
    assert found.checkpoint is not None
    policy, critic, _ = (role.model.num_params() for role in plan.contenders[0].settings.models)
    assert found.checkpoint.bytes == pytest.approx(12 * (policy + critic), rel=0.1)
    assert any("two_models; mean reward in the last step" in line for line in setup_lines(result))
