"""Plans by hand: what 7B takes, what divides, what fits and in which order, what is refused."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from bc2.errors import ResourceError, UsageError
from bc2.model.adapters import is_adapters
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.plan.candidate_layouts import CandidateLayout, layouts_that_fit, possible_layouts
from bc2.plan.check import check_memory_fits
from bc2.plan.devices import DEVICES, find_device, read_bytes, read_price
from bc2.plan.render import render_plan
from bc2.plan.training_plan import Plan, make_plan, recipe_candidate, workload_of
from bc2.recipe import Recipe, load
from bc2.train.memory.estimate import MemoryEstimate, estimate
from bc2.train.memory.run_memory import saved_bytes, trained_count
from bc2.train.memory.shape import TrainingShape
from bc2.train.optimizer_config import AdamWConfig, checkpoint_bytes
from bc2.train.training_settings import TrainingSettings

H100 = DEVICES["h100"]

#: Nothing of what the shipped recipe says of layouts is taken for granted here.
PLAIN = ["pretrain.micro_batch=1", "pretrain.activation_checkpointing=0"]
PLAIN += [f"parallel.{name}=1" for name in ("tensor", "sequence")] + ["parallel.zero=0"]


def seven(*sets: str) -> Recipe:
    return load("7b", [*PLAIN, *sets])


def settings(*sets: str) -> TrainingSettings:
    return TrainingSettings.of(seven(*sets))


@pytest.fixture(scope="module")
def eight() -> Plan:
    return make_plan(seven(), H100, 8)


# -- memory by hand -------------------------------------------------------------------------

SEVEN = ModelConfig(
    vocab_size=125_696, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32
)
PARAMS = 7_505_973_248


def of_seven(world: int = 8, device: str = "cuda", **parallel: Any) -> MemoryEstimate:
    layout = ParallelConfig(**parallel)
    shape = TrainingShape(SEVEN, 1, 4096, "bf16", 1, device=device, parallel=layout, world=world)
    return estimate(shape)


def lasting(found: MemoryEstimate) -> int:
    return found.weights + found.master + found.moments + found.gradients


def test_zero_3_holds_an_eighth_of_18_bytes_a_parameter_on_8() -> None:
    """bf16 2, fp32 master 4, moments 8, and 4 of fp32 gradients."""
    assert lasting(of_seven(zero=3)) == PARAMS * 18 // 8


def test_zero_2_holds_all_bf16_weights_and_an_eighth_of_the_rest() -> None:
    assert lasting(of_seven(zero=2)) == 2 * PARAMS + PARAMS * 16 // 8


def test_zero_1_in_bf16_holds_fp32_gradients_of_all_weights() -> None:
    """DeepSpeed's BF16_Optimizer shares weights and moments alone."""
    assert lasting(of_seven(zero=1)) == (2 + 4) * PARAMS + PARAMS * 12 // 8


def test_zero_0_is_the_local_engine_on_every_rank() -> None:
    matrices = 2 * 125_696 * 4096
    assert lasting(of_seven()) == 16 * PARAMS + 2 * (PARAMS - matrices)
    assert of_seven(world=1).total == of_seven(world=64).total


#: Qwen 2.5 0.5B, whose head is tied, and its sizes: 494 million parameters.
QWEN = ModelConfig(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14,
    num_kv_heads=2, qkv_bias=True, tied=True, norm_head=False, rope_base=1e6,
)  # fmt: skip


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_tied_head_is_in_memory_once(tensor: int) -> None:
    assert QWEN.num_params() == 494_032_768
    layout = ParallelConfig(tensor=tensor)
    found = estimate(
        TrainingShape(QWEN, 1, 4096, "bf16", 1, device="cuda", parallel=layout, world=tensor)
    )
    norms = (2 * 24 + 1) * 896
    mine, matrix = (494_032_768 - norms) // tensor + norms, 151_936 * 896 // tensor
    # The embedding is fp32 and its own master.
    assert lasting(found) == 16 * mine + 2 * (mine - matrix)
    assert found.total > lasting(found)


def test_no_layout_parts_a_key_head() -> None:
    names = ("num_kv_heads", "num_heads", "hidden_size", "intermediate_size")
    recipe = seven(*(f"model.{name}={getattr(QWEN, name)}" for name in names))
    work = workload_of(TrainingSettings.of(recipe), H100, 8)
    found = {(layout.tensor, layout.sequence) for layout in possible_layouts(work)}
    assert found == {(1, 1), (2, 1), (1, 2)}
    # All-to-all of 14 query heads, twice 2 key heads, and 14 heads' results, of 64 channels.
    one = CandidateLayout(work, ParallelConfig(sequence=2), 0, 1)
    tokens = work.training.step_tokens / (4 * 2)
    assert one.traffic["sequence"] == tokens * 2 * (14 + 4 + 14) * 64 * 2 * 32 / 2


HEAD = 125_696 * 4096


@pytest.mark.parametrize(
    ("layout", "head", "others"),
    [
        # The local engine's head is its own master; DeepSpeed's is bf16, with a master.
        ({"zero": 0}, 4 + 8 + 4, 2),
        ({"zero": 2}, 2 + 16 / 8, 2),
        ({"zero": 3}, (2 + 16) / 8, 2 / 8),
    ],
)
def test_a_frozen_parameter_takes_two_bytes(
    layout: dict[str, int], head: float, others: float
) -> None:
    """Only the head is trained."""
    shape = TrainingShape(
        SEVEN, 1, 4096, "bf16", 1, device="cuda", parallel=ParallelConfig(**layout), world=8,
        trained=frozenset({"lm_head.weight"}),
    )  # fmt: skip
    assert lasting(estimate(shape)) == head * HEAD + others * (PARAMS - HEAD)
    assert replace(shape, adapters=8000).trained_params == HEAD + 8000


def test_a_head_alone_is_trained_where_the_whole_model_does_not_fit() -> None:
    work = workload_of(settings(), H100, 1)
    assert not layouts_that_fit(work)
    head = replace(work.roles[0], trainable="lm_head.weight".__eq__)
    alone = replace(work, roles=(head,))
    assert layouts_that_fit(alone)
    # Its gradients alone pass between the ranks.
    zero_2, frozen = (
        CandidateLayout(one.at(8), ParallelConfig(zero=2), 1, 1) for one in (work, alone)
    )
    share = HEAD / PARAMS
    assert frozen.traffic["data"] == pytest.approx(zero_2.traffic["data"] * share)
    assert checkpoint_bytes(SEVEN, AdamWConfig(), trained_count(head)) == 4 * PARAMS + 8 * HEAD


def test_lora_takes_two_bytes_a_parameter_of_the_base(eight: Plan) -> None:
    """7B with adapters of rank 8: 15 GB of weights and little more; a plan says what is trained."""
    rank, hidden, inner = 8, 4096, 11_008
    inputs = 4 * hidden + inner  # of W_pack, o_proj, gate, up, and down
    outputs = 3 * hidden + 2 * hidden + 2 * inner
    adapters = 32 * rank * (inputs + outputs)
    add = add_lora(LoraConfig(rank=rank))
    role = replace(eight.work.roles[0], trainable=is_adapters, adapters=add, alone=True)
    work = replace(workload_of(settings(), H100, 1), roles=(role,))
    found = CandidateLayout(work, ParallelConfig(), 1, 1).memory
    assert lasting(found) == 2 * PARAMS + (2 + 4 + 8 + 4) * adapters
    assert found.total < 20e9
    saved = saved_bytes(role, AdamWConfig())
    assert saved == 12 * adapters
    plan = replace(eight, work=work, checkpoint_bytes=saved)
    assert plan.as_json()["trained_parameters"] == adapters
    console = Console(file=io.StringIO(), width=200)
    console.print(render_plan(plan))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{PARAMS:,}; {adapters:,} are trained" in shown
    assert "0.2 GB a checkpoint (12 bytes a parameter)" in shown
    # Each of two ranks has half of B beside W_pack, gate and up, and half of A beside the others.
    both = CandidateLayout(work.at(2), ParallelConfig(tensor=2), 1, 1).memory
    cut = 32 * rank * (3 * hidden + 2 * inner + hidden + inner)
    assert both.moments == 8 * (adapters - cut // 2)


def test_groups_hold_weights_once_more_and_offload_moves_states() -> None:
    without, grouped = of_seven(64, zero=3), of_seven(64, zero=3, zero_group=8)
    assert grouped.total - without.total == 2 * PARAMS // 8
    moved = of_seven(8, zero=3, offload_optimizer=True)
    # fp32 weights, moments, gradients twice, and a bf16 copy of the weights on their way back
    assert moved.host == (4 + 8 + 4 + 4 + 2) * PARAMS // 8
    assert moved.total < of_seven(8, zero=3).total


def test_offload_with_zero_2_leaves_fp32_gradients_of_this_ranks_part() -> None:
    """DeepSpeed's `_build_compact_grad_partition_buffer`: until the update is made."""
    for gpus in (1, 8):
        moved = of_seven(gpus, zero=2, offload_optimizer=True)
        for phase in ("turn", "end", "reduction", "norm", "update"):
            assert moved.phases[phase]["gradients"] >= 4 * PARAMS // gpus, phase
        assert moved.phases["update"]["gradients"] == 4 * PARAMS // gpus
        matrix = 125_696 * 4096
        # fp32 weights, moments and gradients, bf16 weights on their way back, and a buffer.
        assert moved.host == (4 + 8 + 4 + 2) * PARAMS // gpus + 2 * matrix


def test_offload_with_zero_1_keeps_fp32_gradients_of_all_weights_between_micro_batches() -> None:
    layout = ParallelConfig(zero=1, offload_optimizer=True)
    shape = TrainingShape(SEVEN, 1, 4096, "bf16", 1, device="cuda", parallel=layout, world=8)
    once, again = (estimate(replace(shape, accumulated=several)) for several in (False, True))
    assert again.phases["head"]["gradients"] - once.phases["head"]["gradients"] == 4 * PARAMS
    # The last micro-batch sums what is reduced beside them.
    assert again.phases["turn"]["gradients"] >= 4 * PARAMS + 4 * PARAMS // 8


def test_offloading_on_a_cpu_moves_nothing_away() -> None:
    plain, moved = (of_seven(8, "cpu", zero=3, offload_optimizer=on) for on in (False, True))
    assert moved.host == 0
    # Gradients are there twice.
    assert lasting(moved) == lasting(plain)
    assert moved.phases["norm"]["gradients"] == 2 * plain.phases["norm"]["gradients"]
    assert moved.total > plain.total, "its buffers come on top"


def test_tensor_ranks_halve_matrices_and_sequence_ranks_halve_tokens() -> None:
    whole, tensor, sequence = (
        of_seven(2, **{name: 2}) if name else of_seven(1) for name in ("", "tensor", "sequence")
    )
    norms = 65 * 4096
    assert tensor.moments == 8 * ((PARAMS - norms) // 2 + norms)
    assert sequence.moments == whole.moments
    assert sequence.recomputed < 0.6 * whole.recomputed


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_parts_of_every_layout_are_bytes(zero: int, device: str) -> None:
    for tensor, sequence, accumulated in itertools.product((1, 2), (1, 2), (False, True)):
        layout = ParallelConfig(tensor=tensor, sequence=sequence, zero=zero)  # type: ignore[arg-type]
        shape = TrainingShape(
            SEVEN, 1, 4096, "bf16", 2, device=device, accumulated=accumulated, parallel=layout,
            world=8,
        )  # fmt: skip
        found = estimate(shape)
        assert all(size >= 0 for phase in found.phases.values() for size in phase.values())
        assert sum(found.parts.values()) == found.total


# -- identities -----------------------------------------------------------------------------


def test_every_solution_of_the_batch_multiplies_to_it(eight: Plan) -> None:
    training = eight.work.training
    assert len(eight.batches()) > 10
    for each in eight.batches():
        rows = each["micro_batch"] * each["data"] * each["accumulation"]
        assert rows * training.sequence_length == training.batch_tokens
    for layout in eight.layouts:
        rows = layout.micro_batch * layout.data * layout.accumulation
        assert rows == training.batch_sequences
        assert layout.data * layout.parallel.ranks_of_a_replica == 8


def test_time_money_and_disk_by_hand() -> None:
    device = find_device("H100", price="2/hour")
    sets = ["pretrain.length=1000 steps", "pretrain.keep_checkpoints=3"]
    plan = make_plan(seven(*sets), device, 8, mfu=0.5)
    flops = 6 * (PARAMS - 125_696 * 4096 - 65 * 4096) + 12 * 32 * 4096 * 4096
    seconds = 1000 * 4_194_304 * flops / (8 * 989e12 * 0.5)
    assert plan.hours == pytest.approx(seconds / 3600)
    assert plan.cost == pytest.approx(2 * 8 * seconds / 3600)
    assert plan.as_json()["disk"] == {
        "checkpoint": 12 * PARAMS, "kept": 3, "total": 36 * PARAMS,
    }  # fmt: skip


def test_all_checkpoints_of_a_run_are_counted(eight: Plan) -> None:
    """2.6T tokens of 4,194,304 a step are 619,889 steps; one in a thousand is kept."""
    assert eight.steps == 619_889
    assert eight.checkpoints == 620


def test_a_length_in_epochs_has_no_hours() -> None:
    plan = make_plan(seven("pretrain.length=2 epochs"), H100, 8)
    assert (plan.steps, plan.hours, plan.cost, plan.checkpoints) == (None, None, None, None)


# -- what fits, and in which order ----------------------------------------------------------


def test_seven_billion_do_not_fit_one_h100_without_offload() -> None:
    with pytest.raises(ResourceError, match="no other layout of 1 fits") as caught:
        make_plan(seven(), H100, 1)
    assert caught.value.exit_code == 6
    assert "take 2 devices" in str(caught.value.todo)
    assert "offload" in str(caught.value.todo)


def test_what_does_not_fit_a_small_device_may_fit_a_larger_one_or_more() -> None:
    small = replace(H100, name="small", memory=20e9)
    with pytest.raises(ResourceError) as caught:
        make_plan(seven(), small, 8)
    todo = str(caught.value.todo)
    larger = [name for name in DEVICES if f"take {name}: " in todo]
    assert len(larger) == 1
    assert "take 16 devices" in todo
    # What is named does fit.
    assert make_plan(seven(), DEVICES[larger[0]], 8).layouts
    assert make_plan(seven(), small, 16).layouts


def test_offload_is_offered_with_zero_2_which_holds_less_than_1() -> None:
    with pytest.raises(ResourceError) as caught:
        make_plan(seven("pretrain.micro_batch=auto"), DEVICES["h100"], 1)
    assert "offload: data=1 zero=2 offload_optimizer" in str(caught.value.todo)


def test_offloading_names_what_the_host_holds() -> None:
    reason = laid_out(8, zero=3, offload_optimizer=True).reason()
    assert f"{(4 + 8 + 4 + 4 + 2) * PARAMS / 8 / 1e9:,.0f} GB a rank in the host's memory" in reason
    assert "host" not in laid_out(8, zero=3).reason()


def test_they_fit_eight_with_zero(eight: Plan) -> None:
    assert eight.own is not None
    assert not eight.own.fits
    assert {layout.parallel.zero for layout in eight.layouts} >= {1, 2, 3}
    assert all(layout.total <= H100.usable for layout in eight.layouts)
    times = [layout.slowdown for layout in eight.layouts]
    assert times == sorted(times)


def test_the_recipes_own_layout_comes_first_if_it_fits() -> None:
    own = ["parallel.zero=3", "pretrain.activation_checkpointing=1"]
    plan = make_plan(seven(*own), H100, 8)
    assert plan.layouts[0].own
    assert plan.layouts[0].parallel.zero == 3
    assert sum(layout.own for layout in plan.layouts) == 1


def test_auto_is_what_the_run_would_take() -> None:
    sets = ["parallel.zero=3", "pretrain.activation_checkpointing=auto"]
    own = recipe_candidate(
        settings(*sets, "pretrain.micro_batch=auto"), workload_of(settings(*sets), H100, 8)
    )
    assert own.checkpointing >= 1
    larger = recipe_candidate(
        settings(*sets), workload_of(settings(*sets, "pretrain.micro_batch=auto"), H100, 8)
    )
    assert larger.micro_batch > 1
    assert larger.fits


def laid_out(gpus: int, checkpointing: int = 0, **parallel: Any) -> CandidateLayout:
    return CandidateLayout(
        workload_of(settings(), H100, gpus), ParallelConfig(**parallel), checkpointing, 1
    )


def test_what_is_slower() -> None:
    assert laid_out(8, 1, zero=1).slowdown > laid_out(8, zero=1).slowdown
    assert laid_out(8, tensor=8).slowdown > laid_out(8, tensor=2).slowdown
    # Between machines weights are dearer to gather than inside one.
    far = laid_out(1024, zero=3).waits["data"]
    assert far > laid_out(1024, zero=3, zero_group=8).waits["data"] > 0


def test_traffic_by_hand() -> None:
    """Megatron-LM: 4 sums a layer of the hidden states, 2 more for embedding and head."""
    tokens = 4_194_304 / 4
    sums = (4 * 32 + 2) * 2 * (1 / 2) * tokens * 4096 * 2
    assert laid_out(8, tensor=2).traffic["tensor"] == pytest.approx(sums)
    assert laid_out(8).traffic["data"] == pytest.approx(2 * 4 * PARAMS * 7 / 8)
    assert laid_out(8, zero=1).traffic["data"] == pytest.approx(3 * 2 * PARAMS * 7 / 8)


def test_a_recipe_for_other_numbers_of_devices_still_gets_a_plan() -> None:
    plan = make_plan(seven("parallel.zero=3", "parallel.zero_group=8"), H100, 4)
    assert plan.own is None
    assert "zero_group = 8" in str(plan.refused)
    assert plan.layouts


# -- wrong input ----------------------------------------------------------------------------


def test_devices_that_divide_nothing_are_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="7 devices cannot share") as caught:
        make_plan(seven(), H100, 7)
    assert "8" in str(caught.value.todo)


@pytest.mark.parametrize(("name", "hint"), [("h10O", "h100"), ("A8000", "a800"), ("gpu", "h200")])
def test_an_unknown_device_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="no device is known") as caught:
        find_device(name)
    assert hint in str(caught.value.todo)


def test_a_device_of_given_figures() -> None:
    device = find_device(None, memory="96GB", flops=4e14, price="1.25")
    assert (device.memory, device.flops, device.price) == (96e9, 4e14, 1.25)
    with pytest.raises(UsageError, match="no device was given"):
        find_device(None, memory="96GB")


def test_ranks_of_a_cpu_share_its_memory() -> None:
    alone, shared = find_device("cpu", flops=1e12), find_device("cpu", count=4, flops=1e12)
    assert shared.memory == pytest.approx(alone.memory / 4, rel=0.3)
    assert (shared.kind, shared.machine) == ("cpu", 4)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("141 gb", 141e9), ("80GiB", 80 * 2**30), ("5e9", 5e9)]
)
def test_amounts_of_memory(text: str, size: float) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "eighty"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        read_bytes(text)


@pytest.mark.parametrize("text", ["2.5/day", "free", "-2"])
def test_what_is_no_price(text: str) -> None:
    with pytest.raises(UsageError, match="no price"):
        read_price(text)


@pytest.mark.parametrize("mfu", [0.0, -1.0, 57.7, float("nan")])
def test_an_mfu_is_a_share(mfu: float) -> None:
    with pytest.raises(UsageError, match="no share of the peak"):
        make_plan(seven(), H100, 8, mfu)


# -- before a run ---------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_stopped_with_what_would() -> None:
    # States are 134 GB, and the activations of eight rows without checkpointing 220 GB more.
    sets = ["pretrain.device=cpu", "pretrain.precision=bf16", "pretrain.micro_batch=8"]
    recipe = seven(*sets)
    with pytest.raises(ResourceError, match="is free") as caught:
        check_memory_fits(TrainingSettings.of(recipe), 1, available=int(250e9))
    assert "--set pretrain.micro_batch=" in str(caught.value.todo)
    with pytest.raises(ResourceError, match="no other layout"):
        check_memory_fits(TrainingSettings.of(recipe), 1, available=int(16e9))
    check_memory_fits(TrainingSettings.of(recipe), 1, available=int(400e9))


def test_tiny_runs_are_never_stopped() -> None:
    check_memory_fits(TrainingSettings.of(load("tiny")), 1)
    check_memory_fits(TrainingSettings.of(load("mini")), 1, available=2_500_000_000)


def test_a_run_that_divides_nothing_is_left_to_refuse_itself() -> None:
    indivisible = settings("parallel.tensor=3", "pretrain.device=cpu")
    with pytest.raises(UsageError):
        recipe_candidate(indivisible, workload_of(indivisible, H100, 3))
    check_memory_fits(indivisible, 3, available=1)
