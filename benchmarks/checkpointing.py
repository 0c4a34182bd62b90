"""Activation checkpointing by segments of k layers: time of a step and peak memory.

None (0), every layer (1) and other segments, each in a process of its own, in turn, so that
whatever else the machine does falls on all; beside what `bc2.train.memory` estimates, whose
least segment ("auto") is marked:

    python benchmarks/checkpointing.py compare --layers 24,96 --rounds 3
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from bc2.model.model_config import ModelConfig
from bc2.train.memory.estimate import MemoryEstimate, estimate, least_segment
from bc2.train.memory.shape import TrainingShape

app = typer.Typer(add_completion=False)

HEAD_DIM = 64


def shape(layers: int, hidden: int, vocab: int, length: int) -> ModelConfig:
    """A model of the paper's proportions."""
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=-(-hidden * 8 // 3 // 128) * 128,
        num_layers=layers,
        num_heads=hidden // HEAD_DIM,
        context_length=length,
    )


@app.command(hidden=True)
def one(
    segment: int,
    layers: int,
    hidden: int,
    vocab: int,
    rows: int,
    length: int,
    micro: int,
    steps: int,
) -> None:
    """Measure one setting in this process; prints JSON."""
    import numpy as np
    import torch

    from bc2.data.loader import pack
    from bc2.model.transformer import Transformer
    from bc2.train.engines.local import LocalEngine
    from bc2.train.optimizer_config import AdamWConfig
    from bc2.train.peak import allocated_peak, forget_peak, host_peak
    from bc2.train.pretrain.next_token import NextToken

    baseline = forget_peak()
    model = Transformer(shape(layers, hidden, vocab, length))
    model.init_weights(torch.Generator().manual_seed(0))
    engine = LocalEngine(model, AdamWConfig(), checkpointing=segment)
    drawn = np.random.default_rng(0).integers(0, vocab, (rows, length + 1))
    batch = pack(drawn, np.zeros(rows, dtype=np.int64), eos_id=-1)
    losses: list[float] = []

    def step() -> None:
        tokens = micro * batch.num_labels
        found = engine.accumulate([batch] * micro, NextToken(2e-4), divisor=tokens)
        engine.update(1e-3, norm=engine.gradient_norm(), clip_norm=1.0)
        losses.append(found["loss"] / tokens)

    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    resident = host_peak() - baseline
    states = engine.optimizer.tensors()
    allocated = allocated_peak(step, [*model.parameters(), *states])
    # The first step loads kernels and makes the moments.
    result = {"seconds": min(seconds[1:]), "resident": resident, "allocated": allocated}
    print(json.dumps({**result, "losses": losses}))


@app.command()
def compare(
    layers: Annotated[str, typer.Option(help="Depths of the models.")] = "24,96",
    segments: Annotated[str, typer.Option(help="Layers in a segment; 0: none.")] = "0,1,2,3,4,6,12",
    rounds: Annotated[int, typer.Option(help="Processes for each setting.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps in a process; the fastest counts.")] = 3,
    hidden: int = 128,
    vocab: int = 1024,
    rows: int = 4,
    length: int = 256,
    micro: Annotated[int, typer.Option(help="Micro-batches of a step.")] = 2,
) -> None:
    """Compare the segments and print a Markdown table for each depth."""
    for depth in map(int, layers.split(",")):
        model = shape(depth, hidden, vocab, length)
        trained = TrainingShape(model, rows, length, "fp32", 0, accumulated=micro > 1)
        auto = least_segment(trained)
        sizes = sorted({auto, *map(int, segments.split(","))})
        found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size, results in found.items():
                results.append(_measure(size, depth, hidden, vocab, rows, length, micro, steps))
        print(f"\n{depth} layers, hidden {hidden}, {micro} x {rows} x {length} tokens, fp32, MB:\n")
        print("| k | step, s | against none | tensors | estimate | off | resident | same bits |")
        print("|---|---|---|---|---|---|---|---|")
        for size in sizes:
            expected = estimate(replace(trained, checkpointing=size))
            name = f"{size} (auto)" if size == auto else str(size)
            print(_row(name, found[size], found[sizes[0]], expected), flush=True)


def _measure(*numbers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "one", *map(str, numbers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _row(
    name: str,
    results: list[dict[str, float]],
    none: list[dict[str, float]],
    expected: MemoryEstimate,
) -> str:
    seconds, allocated, resident = (
        statistics.median(result[key] for result in results)
        for key in ("seconds", "allocated", "resident")
    )
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(results, none, strict=True)]
    same = all(a["losses"] == none[0]["losses"] for a in results)
    return (
        f"| {name} | {seconds:.3f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}) | {allocated / 1e6:.0f} | {expected.total / 1e6:.0f} | "
        f"{expected.total / allocated - 1:+.1%} | {resident / 1e6:.0f} | "
        f"{'yes' if same else 'no'} |"
    )


if __name__ == "__main__":
    app()
