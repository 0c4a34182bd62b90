"""Log-probabilities of tokens beside the fused loss, and beside all logits at once.

    python benchmarks/log_probs.py time
    python benchmarks/log_probs.py memory

Times are of forward and backward, taken in turn in one process, so that whatever else the machine
does falls on all; a ratio is of two that follow each other. Memory is the peak of a fresh
process above what it held before. "naive" needs about 17 GB for the shape that is the default.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)

Step = Callable[[], Any]


def naive(hidden, weight, labels, weights, **_):  # type: ignore[no-untyped-def]
    """All logits, in fp32."""
    import torch.nn.functional as F

    unit = F.normalize(weight.float(), dim=-1).to(weight.dtype)
    log_probs = F.linear(hidden, unit).float().log_softmax(-1)
    return (weights * log_probs.gather(1, labels[:, None])[:, 0]).sum()


def fused(hidden, weight, labels, weights, *, compiled):  # type: ignore[no-untyped-def]
    from bc2.model.head_loss import head_loss

    return head_loss(hidden, weight, labels, z_weight=2e-4, compiled=compiled).loss_sum


def log_probs(hidden, weight, labels, weights, *, compiled):  # type: ignore[no-untyped-def]
    from bc2.model.log_probs import token_log_probs

    found = token_log_probs(hidden, weight, labels, norm_head=True, compiled=compiled)
    return (weights * found.log_probs).sum()


def entropy(hidden, weight, labels, weights, *, compiled):  # type: ignore[no-untyped-def]
    """Both with gradients."""
    from bc2.model.log_probs import token_log_probs

    found = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, compiled=compiled)
    return (weights * (found.log_probs + found.entropy)).sum()


KINDS = {"fused": fused, "log_probs": log_probs, "entropy": entropy, "naive": naive}


def _steps(
    kinds: list[str], dtype: str, shape: tuple[int, int, int], compiled: bool, frozen: bool
) -> dict[str, Step]:
    """Of each kind a forward and backward pass, after a small one that loads what it needs."""
    import torch

    torch.manual_seed(0)
    tokens, size, vocab = shape
    made: Any = {"dtype": getattr(torch, dtype)}
    hidden = torch.randn(tokens, size, **made).requires_grad_()
    weight = torch.randn(vocab, size, **made).requires_grad_(not frozen)
    labels, weights = torch.randint(vocab, (tokens,)), torch.rand(tokens)

    def step(kind: str, tokens: int, vocab: int) -> None:
        hidden.grad = weight.grad = None
        few = hidden[:tokens], weight[:vocab], labels[:tokens] % vocab, weights[:tokens]
        KINDS[kind](*few, compiled=compiled).backward()

    for kind in kinds:
        step(kind, 128, 1024)
    return {kind: (lambda kind=kind: step(kind, tokens, vocab)) for kind in kinds}


@app.command(name="time")
def compare_times(
    rounds: int = 7,
    tokens: int = 8192,
    hidden_size: int = 384,
    vocab: int = 125_696,
    dtypes: str = "float32,bfloat16",
    kinds: str = "fused,log_probs,entropy",
    compiled: bool = False,
    frozen: Annotated[bool, typer.Option(help="The weight needs no gradient.")] = False,
) -> None:
    """Seconds of each kind, and over the first kind's: median (lowest to highest)."""
    names = kinds.split(",")
    print("| dtype | | seconds | over the first |")
    print("|---|---|---|---|")
    for dtype in dtypes.split(","):
        steps = _steps(names, dtype, (tokens, hidden_size, vocab), compiled, frozen)
        for step in steps.values():
            step()  # compiles, and maps memory
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - start)
        for name, seconds in taken.items():
            over = [a / b for a, b in zip(seconds, taken[names[0]], strict=True)]
            print(f"| {dtype} | {name} | {_spread(seconds)} | {_spread(over)} |", flush=True)


@app.command(name="memory")
def compare_memory(
    tokens: int = 8192,
    hidden_size: int = 384,
    vocab: int = 125_696,
    dtypes: str = "float32,bfloat16",
    kinds: str = "naive,fused,log_probs,entropy",
) -> None:
    """Peak memory of each kind above what the process held, and over the first kind's."""
    print("| dtype | | extra memory, GB | over the first |")
    print("|---|---|---|---|")
    for dtype in dtypes.split(","):
        first = 0.0
        for kind in kinds.split(","):
            shape = map(str, (tokens, hidden_size, vocab))
            command = [sys.executable, __file__, "peak", kind, dtype, *shape]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found: float = json.loads(done.stdout)["bytes"]
            first = first or found
            print(f"| {dtype} | {kind} | {found / 1e9:.3f} | {found / first:.3f} |", flush=True)


@app.command(hidden=True)
def peak(kind: str, dtype: str, tokens: int, hidden_size: int, vocab: int) -> None:
    """Measure one kind in this process; prints JSON."""
    step = _steps([kind], dtype, (tokens, hidden_size, vocab), False, False)[kind]
    before = _peak_bytes()
    step()
    print(json.dumps({"bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    app()
