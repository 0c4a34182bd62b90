"""Training that was saved and goes on in a new process: the same bits as one that never stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bc2.parallel.state import HeldTensors, Stored, write_fragments
from bc2.train.deterministic import deterministic
from bc2.train.engines.base import Engine
from gpu_stages.checks import Checks
from gpu_stages.training import MIDDLE, SMALL, counting, engine_of, packed, step

HALF, WHOLE = 4, 8


def run(checks: Checks, part: str) -> None:
    """The first process trains without a stop, and up to the save; the second goes on."""
    with deterministic(True):
        for precision in ("bf16", "fp32"):
            folder = checks.scratch / f"resume-{precision}"
            with checks.part(f"{precision} {part}"):
                (_first if part == "first" else _second)(checks, folder, precision)


def _first(checks: Checks, folder: Path, precision: str) -> None:
    whole = _engine(checks, precision)
    losses = _train(checks, whole, 0, WHOLE)
    half = _engine(checks, precision)
    _train(checks, half, 0, HALF)
    folder.mkdir()
    state = half.snapshot()
    for stem, held in (("model", state.weights), ("optimizer", state.optimizer)):
        files = held.files(stem)
        for name, file in files.items():
            file.create(folder / name)
        write_fragments(folder, files, held.fragments)
    expected = {"losses": losses, "digests": _digests(whole)}
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _second(checks: Checks, folder: Path, precision: str) -> None:
    engine = _engine(checks, precision)
    found = (Stored.open([folder / f"{stem}.safetensors"]) for stem in ("model", "optimizer"))
    engine.restore(*found)
    losses = _train(checks, engine, HALF, WHOLE)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    why = "a run that is killed and resumed is the run that was not"
    same = losses == expected["losses"][HALF:]
    checks.true(f"{precision}: losses of steps 5 to 8", same, f"the same bits: {same}", why)
    digests = _digests(engine)
    other = [name for name, digest in expected["digests"].items() if digests.get(name) != digest]
    saw = f"{len(digests) - len(other)} of {len(digests)} tensors are the same"
    checks.true(f"{precision}: weights and moments", not other and len(digests) > 9, saw, why)


def _engine(checks: Checks, precision: str) -> Engine:
    return engine_of(SMALL if checks.small else MIDDLE, checks.device, precision)


def _train(checks: Checks, engine: Engine, first: int, last: int) -> list[str]:
    """Steps `first` to `last` - 1, of two micro-batches: their losses and norms, bit by bit."""
    found = []
    length = 64 if checks.small else 1024
    for number in range(first, last):
        rows = counting(engine.model.config, 4, length, number)
        made = step(engine, [packed(rows[:2]), packed(rows[2:])])
        found.append(f"{made.loss.hex()} {made.norm.hex()}")
    return found


def _digests(engine: Engine) -> dict[str, str]:
    state = engine.snapshot()
    tensors: Mapping[str, Tensor] = {
        name: held.whole(name) for held in _held(state) for name in held.shapes
    }
    return {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def _held(state) -> tuple[HeldTensors, HeldTensors]:  # type: ignore[no-untyped-def]
    return state.weights, state.optimizer
