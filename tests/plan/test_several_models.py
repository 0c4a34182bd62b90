"""A plan of a run of several models, by hand: memory, FLOPs, bytes over links, what divides."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bc2.errors import ResourceError
from bc2.parallel.parallel_config import ParallelConfig
from bc2.plan.candidate_layouts import CandidateLayout, possible_layouts
from bc2.plan.check import check_memory_fits
from bc2.plan.devices import DEVICES
from bc2.plan.render import render_plan
from bc2.plan.training_plan import make_plan, recipe_candidate, workload_of
from bc2.recipe import load
from bc2.train.memory.run_memory import estimate_run
from bc2.train.training_settings import TrainingSettings

H100 = DEVICES["h100"]


@pytest.fixture
def settings(two_models: Path) -> TrainingSettings:
    return TrainingSettings.of(load(two_models))


def laid_out(settings: TrainingSettings, gpus: int = 2, **parallel: int) -> CandidateLayout:
    work = workload_of(settings, H100, gpus)
    return CandidateLayout(work, ParallelConfig(**parallel), 0, 4)


def alone(settings: TrainingSettings, name: str, **parallel: int) -> CandidateLayout:
    """The layout of one of the models, as if the run had no other."""
    whole = laid_out(settings, **parallel)
    roles = tuple(role for role in whole.work.roles if role.name == name)
    return replace(whole, work=replace(whole.work, roles=roles))


def test_a_step_passes_three_times_through_trained_models_and_once_through_others(
    two_models: Path, settings: TrainingSettings
) -> None:
    policy, critic, reference = (role.model for role in settings.models)
    plan = make_plan(load(two_models), H100, 2)
    token = policy.flops_per_token(64) + critic.flops_per_token(64)
    token += reference.flops_per_token(64) // 3
    assert plan.flops_a_step == token * 16 * 64
    assert plan.as_json()["flops"]["token"] == token
    assert plan.steps == 10
    assert plan.checkpoint_bytes == 12 * (policy.num_params() + critic.num_params())


def test_every_model_is_named(two_models: Path, settings: TrainingSettings) -> None:
    policy, critic, reference = (role.model.num_params() for role in settings.models)
    plan = make_plan(load(two_models), H100, 2)
    answer = json.loads(json.dumps(plan.as_json()))
    assert answer["models"] == [
        {"name": "policy", "parameters": policy, "trained": True},
        {"name": "critic", "parameters": critic, "trained": True},
        {"name": "reference", "parameters": reference, "trained": False},
    ]
    assert answer["parameters"] == policy
    console = Console(width=200, file=io.StringIO())
    console.print(render_plan(plan))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"policy {policy:,} (trained), critic {critic:,} (trained)" in shown
    assert f"reference {reference:,} (frozen)" in shown
    assert "(12 bytes a parameter)" in shown


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_models_that_wait_hold_their_states(settings: TrainingSettings, zero: int) -> None:
    """While the critic computes, the policy waits with its gradients, and its weights lie there."""
    memory = laid_out(settings, zero=zero).memory
    policy = alone(settings, "policy", zero=zero).memory
    critic = alone(settings, "critic", zero=zero).memory
    shared = 2 if zero == 3 else 1
    frozen = 4 * settings.models[2].model.num_params() // shared
    of_policy, of_critic = (memory.phases[f"{name} turn"] for name in ("policy", "critic"))
    assert sum(of_critic.values()) == (
        sum(critic.phases["turn"].values()) + sum(policy.phases["norm"].values()) + frozen
    )
    assert sum(of_policy.values()) == (
        sum(policy.phases["turn"].values()) + sum(critic.lasting.values()) + frozen
    )
    assert sum(memory.phases["policy update"].values()) == (
        sum(policy.phases["update"].values()) + sum(critic.phases["norm"].values()) + frozen
    )
    assert memory.weights == policy.weights + critic.weights + frozen
    assert memory.moments == policy.moments + critic.moments
    assert "reference forward" in memory.phases


def test_what_steps_leave_out_is_held_and_does_not_run(settings: TrainingSettings) -> None:
    whole = laid_out(settings, zero=3)
    *trained, reference = whole.work.roles
    left_out = replace(whole.work, roles=(*trained, replace(reference, in_steps=False)))
    other = replace(whole, work=left_out)
    assert "reference forward" not in other.memory.phases
    assert other.memory.weights == whole.memory.weights
    assert other.traffic["data"] < whole.traffic["data"]
    forward = reference.model.flops_per_token(64) // 3
    assert left_out.token_flops == whole.work.token_flops - forward


def test_a_plan_predicts_what_the_run_itself_does(settings: TrainingSettings) -> None:
    own = recipe_candidate(settings, workload_of(settings, DEVICES["h100"], 1))
    on_gpu = settings.with_training(device="cuda", precision="fp32")
    assert own.memory == estimate_run(on_gpu, 1)


def test_links_carry_all_models(settings: TrainingSettings) -> None:
    for parallel in ({"tensor": 2}, {"zero": 2}, {"zero": 3}):
        whole = laid_out(settings, **parallel).traffic
        each = [alone(settings, name, **parallel).traffic for name in ("policy", "critic")]
        trained = {axis: sum(one[axis] for one in each) for axis in whole}
        gathers = parallel.get("zero") == 3
        assert whole["data"] == pytest.approx(
            trained["data"] + (each[0]["data"] / 3 if gathers else 0)
        )
        assert (whole["tensor"] > trained["tensor"]) == ("tensor" in parallel)


def test_what_divides_must_divide_every_model(settings: TrainingSettings) -> None:
    """The policy has two heads, and the critic one."""
    work = workload_of(settings, H100, 2)
    assert {layout.tensor for layout in possible_layouts(work)} == {1}
    policy = replace(work, roles=work.roles[:1])
    assert {layout.tensor for layout in possible_layouts(policy)} == {1, 2}


def test_a_run_that_cannot_fit_names_its_own_section(settings: TrainingSettings) -> None:
    with pytest.raises(ResourceError, match="is free") as caught:
        check_memory_fits(settings.with_training(micro_batch=16), 1, available=18_000_000)
    assert "--set two_models.micro_batch=" in str(caught.value.todo)
