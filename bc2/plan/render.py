"""A plan, and a history of predictions, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bc2.console import table
from bc2.plan.candidate_layouts import CandidateLayout
from bc2.plan.history import MemoryRecord
from bc2.plan.training_plan import Plan
from bc2.train.memory.estimate import MEMORY_PARTS
from bc2.train.memory.run_memory import part_trained, saved_count

#: Layouts that a person is shown.
SHOWN = 10


def render_plan(plan: Plan) -> Any:
    """A plan for a terminal: what training takes, its memory, the layouts."""
    from rich.console import Group

    chosen = plan.layouts[0]
    return Group(
        table(("", ""), _facts(plan)), "",
        _memory_title(chosen), _memory(chosen), "",
        _layouts(plan.layouts[:SHOWN]),
        *_more(plan),
    )  # fmt: skip


def _facts(plan: Plan) -> list[tuple[str, str]]:
    training = plan.work.training
    best = plan.layouts[0]
    identity = (
        f"{training.step_tokens:,} tokens = micro_batch {best.micro_batch} x data {best.data} x "
        f"accumulation {best.accumulation} x sequence_length {training.sequence_length}"
    )
    return [
        ("recipe", plan.name),
        ("devices", _devices(plan)),
        ("parameters", _parameters(plan)),
        ("a step", identity),
        ("steps", _or_epochs(plan.steps, "{:,}", training.length)),
        ("FLOPs", _flops(plan)),
        ("time", _time(plan)),
        ("cost", _cost(plan)),
        ("disk", _disk(plan)),
    ]


def _parameters(plan: Plan) -> str:
    """Of the model; of several each, and whether it is trained."""
    if not plan.roles:
        whole = f"{plan.work.model.num_params():,}"
        trained = part_trained(plan.work.roles)
        return whole if trained is None else f"{whole}; {trained:,} are trained"
    return ", ".join(
        f"{role['name']} {role['parameters']:,} ({'trained' if role['trained'] else 'frozen'})"
        for role in plan.roles
    )


def _devices(plan: Plan) -> str:
    device = plan.work.device
    return (
        f"{plan.work.gpus} x {device.name}: {device.memory / 1e9:,.0f} GB, "
        f"{device.usable / 1e9:,.1f} of them used by a plan; {device.flops / 1e12:,.4g} TFLOP/s"
    )


def _or_epochs(value: float | None, form: str, length: str) -> str:
    if value is None:
        return f"{length}: known when the data is"
    return form.format(value)


def _flops(plan: Plan) -> str:
    run = "" if plan.steps is None else f", {plan.steps * plan.flops_a_step:.3g} in all"
    return f"{plan.flops_a_step:.3g} a step{run}"


def _time(plan: Plan) -> str:
    at = f"at an MFU of {plan.work.mfu:.1%} (assumed: --mfu)"
    step = f"{plan.work.compute_s:,.3g} s a step"
    if plan.hours is None or plan.device_hours is None:
        return f"{step} {at}"
    return (
        f"{plan.hours:,.1f} hours ({plan.hours / 24:,.1f} days), "
        f"{plan.device_hours:,.0f} device-hours, {step}, {at}"
    )


def _cost(plan: Plan) -> str:
    if plan.work.device.price is None:
        return "give --price 2.5/hour"
    return _or_epochs(plan.cost, "{:,.0f}", plan.work.training.length)


def _disk(plan: Plan) -> str:
    saved = sum(saved_count(role) for role in plan.work.roles if role.trained)
    one = plan.checkpoint_bytes / saved
    each = f"{plan.checkpoint_bytes / 1e9:,.1f} GB a checkpoint ({one:g} bytes a parameter)"
    if plan.checkpoints is None:
        return f"{each}, all kept"
    total = plan.checkpoints * plan.checkpoint_bytes
    size = f"{total / 1e12:,.2f} TB" if total >= 1e12 else f"{total / 1e9:,.1f} GB"
    return f"{each}, {plan.checkpoints:,} kept: {size}"


def _memory_title(layout: CandidateLayout) -> str:
    phases = {
        "head": "in the head's loss", "turn": "as the backward pass begins",
        "end": "as the backward pass ends",
        "embedding": "as a tied head's gradient is added to the embedding's",
        "reduction": "while gradients are reduced",
        "norm": "while the gradient's norm is taken", "update": "in the update",
        "forward": "in the forward pass",
    }  # fmt: skip
    model, _, phase = layout.memory.phase.rpartition(" ")
    of = f" of {model}" if model else ""
    return f"Memory of a device at its peak, {phases[phase]}{of}: {layout.name}"


def _memory(layout: CandidateLayout) -> Any:
    memory = layout.memory
    parts = [(name, memory.parts[name]) for name in MEMORY_PARTS]
    rows = [(name, f"{size / 1e9:,.2f}") for name, size in parts if size]
    if layout.communicators:
        rows.append(("communicators", f"{layout.communicators / 1e9:,.2f}"))
    rows.append(("total", f"{layout.total / 1e9:,.2f}"))
    return table(("part", "GB"), rows)


def _layouts(layouts: Sequence[CandidateLayout]) -> Any:
    columns = ("layout", "micro", "accum", "ckpt", "GB", "time", "why")
    rows = [
        (
            layout.name, str(layout.micro_batch), str(layout.accumulation),
            str(layout.checkpointing), f"{layout.total / 1e9:,.1f}",
            f"{layout.slowdown:.2f}", _why(layout),
        )
        for layout in layouts
    ]  # fmt: skip
    return table(columns, rows, title="Layouts that fit; time against computing alone")


def _why(layout: CandidateLayout) -> str:
    return ("the recipe's own; " if layout.own else "") + layout.reason()


def _more(plan: Plan) -> list[str]:
    lines = []
    left = len(plan.layouts) - SHOWN
    if left > 0:
        lines.append(f"... and {left} more: --json has them all")
    if plan.refused:
        lines.append(f"the recipe's own layout is for other numbers of devices: {plan.refused}")
    if plan.own and not plan.own.fits:
        lines.append(
            f"the recipe's own layout ({plan.own.name}, micro_batch {plan.own.micro_batch}, "
            f"checkpointing {plan.own.checkpointing}) does not fit: "
            f"{plan.own.total / 1e9:,.1f} GB"
        )
    return lines


def render_history(past: Sequence[MemoryRecord]) -> Any:
    rows = [
        (
            one.run, one.layout, one.measure, f"{one.predicted / 1e6:,.0f}",
            f"{one.measured / 1e6:,.0f}", f"{one.error:+.1%}",
        )
        for one in past
    ]  # fmt: skip
    columns = ("run", "layout", "measured as", "predicted MB", "measured MB", "error")
    return table(columns, rows, title="Memory of a rank at its peak")
