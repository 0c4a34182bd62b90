"""The fused head and loss against the plain one: peak memory and time.

Each measurement is a fresh process, and the two take turns, so that whatever else the
machine does falls on both:

    python benchmarks/head_loss.py --rounds 3
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

Z_WEIGHT = 2e-4


def plain(hidden, weight, labels):  # type: ignore[no-untyped-def]
    """What one writes without thinking of memory: all logits, in fp32."""
    import torch
    import torch.nn.functional as F

    unit = F.normalize(weight.float(), dim=-1).to(weight.dtype)
    logits = F.linear(hidden, unit).float()
    ce = F.cross_entropy(logits, labels, reduction="sum")
    return ce + Z_WEIGHT * torch.max(logits, dim=-1).values.square().sum()


def fused(hidden, weight, labels):  # type: ignore[no-untyped-def]
    from bc2.model.head_loss import head_loss

    return head_loss(hidden, weight, labels, z_weight=Z_WEIGHT).loss_sum


@app.command(hidden=True)
def one(kind: str, dtype: str, tokens: int, hidden_size: int, vocab: int, repeats: int) -> None:
    """Measure one implementation in this process; prints JSON."""
    import torch

    torch.manual_seed(0)
    kinds = {"plain": plain, "fused": fused}
    made = {"dtype": getattr(torch, dtype), "requires_grad": True}
    hidden = torch.randn(tokens, hidden_size, **made)
    weight = torch.randn(vocab, hidden_size, **made)
    labels = torch.randint(vocab, (tokens,))
    small = slice(0, 128)  # loads kernels and thread pools
    kinds[kind](hidden[small], weight[: 1 << 10], labels[small] % (1 << 10)).backward()
    hidden.grad = weight.grad = None
    before = _peak_bytes()
    seconds = []
    for _ in range(repeats):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss = kinds[kind](hidden, weight, labels)
        (loss / tokens).backward()
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": min(seconds),
                "bytes": _peak_bytes() - before,
                "loss": loss.item() / tokens,
                "grad": weight.grad.double().norm().item(),
            }
        )
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@app.command()
def compare(
    rounds: Annotated[int, typer.Option(help="Pairs of processes for each dtype.")] = 3,
    repeats: Annotated[int, typer.Option(help="Steps in a process; the fastest counts.")] = 2,
    tokens: int = 8192,
    hidden_size: int = 384,
    vocab: int = 125_696,
    dtypes: str = "float32,bfloat16",
) -> None:
    """Compare the two and print a Markdown table."""
    print("| dtype | | seconds | extra memory, GB | loss | weight gradient |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for dtype in dtypes.split(","):
        found = {"plain": [], "fused": []}
        for _ in range(rounds):
            for kind, results in found.items():
                shape = (tokens, hidden_size, vocab, repeats)
                results.append(_measure(kind, dtype, *shape))
        for kind, results in found.items():
            print(_row(dtype, kind, results), flush=True)
        ratios.append(_ratios(dtype, found["plain"], found["fused"]))
    print("\n".join(["", "fused / plain, median (lowest to highest):", *ratios]))


def _measure(kind: str, dtype: str, *shape: int) -> dict[str, float]:
    command = [sys.executable, __file__, "one", kind, dtype, *map(str, shape)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _row(dtype: str, kind: str, results: list[dict[str, float]]) -> str:
    seconds = _spread([r["seconds"] for r in results])
    memory = _spread([r["bytes"] / 1e9 for r in results])
    first = results[0]
    return (
        f"| {dtype} | {kind} | {seconds} | {memory} | {first['loss']:.6f} | {first['grad']:.6f} |"
    )


def _ratios(dtype: str, plain: list[dict[str, float]], fused: list[dict[str, float]]) -> str:
    pairs = list(zip(plain, fused, strict=True))
    seconds = _spread([b["seconds"] / a["seconds"] for a, b in pairs])
    memory = _spread([b["bytes"] / a["bytes"] for a, b in pairs])
    return f"- {dtype}: time {seconds}, memory {memory}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    app()
