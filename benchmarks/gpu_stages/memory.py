"""The memory that training takes against `bc2.train.memory`; and micro_batch = "auto"."""

from __future__ import annotations

import gc
import importlib.util
from dataclasses import asdict
from typing import Any

import torch

from bc2.free_memory import device_available
from bc2.train.memory.estimate import MemoryEstimate, estimate
from bc2.train.memory.shape import TrainingShape
from bc2.train.micro_batch_trial import Trial as MicroBatchTrial
from bc2.train.peak import allocated_peak
from gpu_stages import plain_configs
from gpu_stages.checks import Checks
from gpu_stages.plain_configs import WIDE_7B, AdamW, Layout, Model, Training
from gpu_stages.training import SMALL, packed, quick_engine, random_rows, step

#: Share of the plan by which the peak may differ.
MARGIN = 0.10

#: Share of the free memory that the model may be planned to take.
_ROOM = 0.85


def run(checks: Checks, part: str) -> None:
    """A measured step, then the search for a micro-batch."""
    model = WIDE_7B
    if checks.small:
        model = SMALL.model_copy(
            update={"hidden_size": 384, "intermediate_size": 1056, "num_layers": 4}
        )
    length = 64 if checks.small else 4096
    model = model.model_copy(update={"context_length": length})
    free = device_available(checks.device)
    layers = model.num_layers
    while layers > 1 and _plan(checks, model, length) > _ROOM * free:
        layers -= 1
        model = model.model_copy(update={"num_layers": layers})
    with checks.part("the peak against the plan"):
        _measure(checks, model, length)
    gc.collect()
    if not checks.small:
        # A trial counts what this process has reserved.
        torch.cuda.empty_cache()
    with checks.part("auto: a trial"):
        _try(checks, model, length)
    with checks.part("auto: the search"):
        _search(checks)


def _plan(checks: Checks, model: Model, length: int) -> int:
    return _estimate(checks, model, length).total


def _estimate(checks: Checks, model: Model, length: int) -> MemoryEstimate:
    typed: Any = model
    layout: Any = Layout()
    optimizer: Any = AdamW()
    shape = TrainingShape(
        typed, 1, length, _precision(checks), 0, device=checks.device.type, parallel=layout,
        optimizer=optimizer,
    )  # fmt: skip
    return estimate(shape)


def _precision(checks: Checks) -> Any:
    return "fp32" if checks.small else "bf16"


def _measure(checks: Checks, model: Model, length: int) -> None:
    estimated = _estimate(checks, model, length)
    planned = estimated.total
    engine = quick_engine(model, checks.device, _precision(checks))
    batch = packed(random_rows(model, 1, length, 0, documents=False))
    step(engine, [batch])  # from now on there is the optimizer's state
    if checks.small:
        held = [*engine.model.parameters(), *engine.held_tensors()]
        measured = allocated_peak(lambda: step(engine, [batch]), held)
    else:
        torch.cuda.reset_peak_memory_stats(checks.device)
        step(engine, [batch])
        measured = torch.cuda.max_memory_allocated(checks.device)
        # To tell which part of the plan is off.
        seen = {
            "between_steps": torch.cuda.memory_allocated(checks.device),
            "peak_reserved": torch.cuda.max_memory_reserved(checks.device),
        }
        checks.record("memory", {"planned": asdict(estimated), "peak": measured, **seen})
    checks.figure("layers", model.num_layers)
    checks.figure("planned", round(planned / 1e9, 3), "GB", key=True)
    checks.figure("measured", round(measured / 1e9, 3), "GB", key=True)
    checks.within(
        f"the peak of {model.num_layers} layers against the plan", abs(measured / planned - 1),
        MARGIN, "a plan that is off by more says that things fit which do not",
    )  # fmt: skip


def _training(checks: Checks, length: int, sequences: int) -> Training:
    return Training(str(checks.device), _precision(checks), length, batch_sequences=sequences)


def _try(checks: Checks, model: Model, length: int) -> None:
    """One size, in this process: what the search asks of its worker."""
    small = model.model_copy(update={"num_layers": 1, "vocab_size": 4096})
    role = plain_configs.Role(small)
    settings: Any = plain_configs.TrialSettings((role,), _training(checks, length, 2))
    found = MicroBatchTrial(settings, 0.07).fits(2)
    why = "two short sequences and one layer fit anywhere"
    checks.true("auto: a trial", bool(found["fits"]) and found["bytes"] > 0, found, why)


def _search(checks: Checks) -> None:
    if importlib.util.find_spec("pydantic") is None:
        checks.not_run("auto: the search", "its settings need pydantic, which is not installed")
        return
    from bc2.model.model_config import ModelConfig
    from bc2.train.micro_batch import choose_micro_batch
    from bc2.train.pretrain.pretrain_config import PretrainConfig
    from bc2.train.training_spec import TrainingSpec

    shape = {**(SMALL if checks.small else WIDE_7B).model_dump(), "num_layers": 1}
    shape["vocab_size"] = 4096
    sequences = 4 if checks.small else 16
    training = PretrainConfig(
        length="1 steps", batch_tokens=sequences * 64, micro_batch="auto", sequence_length=64,
        device=str(checks.device), precision=_precision(checks),
    )  # fmt: skip
    spec = TrainingSpec(algorithm="pretrain", model=ModelConfig(**shape), training=training)
    choice = choose_micro_batch(spec.settings)
    checks.figure("micro_batch = auto", choice.micro_batch, "sequences", key=True)
    why = "such short sequences all fit"
    checks.true("auto: the search", choice.micro_batch == sequences, str(choice), why)
