"""The head's loss against fp64; what it waits for, and how many kernels it launches.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bc2.model.head_loss import IGNORE, head_loss
from bc2.parallel.build import build_model
from bc2.parallel.mesh import Mesh
from bc2.train.deterministic import deterministic
from bc2.train.pretrain.next_token import NextToken
from gpu_stages.checks import Checks, relative
from gpu_stages.kernels import on_gpu
from gpu_stages.plain_configs import Model
from gpu_stages.training import packed, random_rows

#: Relative error of the loss, and of the gradients' L2 norm.
LIMITS = {"bf16": (2e-3, 2e-2), "fp32": (1e-5, 1e-4)}
WHY = "logits and their gradient are rounded to bf16 (2⁻⁹) or fp32; sums are in fp32 or wider"

#: The limit of gradients in bf16 with max-z. Without its part of them the error would be 0.09.
OF_MAX_Z = 4e-2
WHY_MAX_Z = (
    f"{WHY}; and bf16 rounds the two largest logits of some tokens to the same number, of 3% the "
    "other one is taken for z"
)

#: Kernels of a forward and backward pass of the head, for one chunk of tokens.
MOST_LAUNCHES = 500


def run(checks: Checks, part: str) -> None:
    """Every variant against fp64, then waits, launches and bits."""
    sizes = (1251, 503) if checks.small else (125_696, 50_257)
    for vocab in sizes:
        for precision in ("bf16", "fp32"):
            for norm_head in (True, False):
                for z_weight in (0.0, 0.01):
                    kind = "NormHead" if norm_head else "plain"
                    name = f"V={vocab} {precision} {kind} z={z_weight:g}"
                    with checks.part(name):
                        _against_fp64(checks, name, vocab, precision, norm_head, z_weight)
    for precision in ("bf16", "fp32"):
        name = f"V={sizes[1]} {precision} compiled"
        with checks.part(name):
            _against_fp64(checks, name, sizes[1], precision, True, 0.01, compiled=True)
        # The products of further chunks are added to that of the first one.
        name, size = f"V={sizes[1]} {precision} in chunks", 32 if checks.small else 256
        with checks.part(name):
            _against_fp64(checks, name, sizes[1], precision, True, 0.0, chunk_tokens=size)
    with checks.part("no host wait"):
        _no_wait(checks)
    with checks.part("launches"):
        _launches(checks, sizes[0])
    for name, compiled in (("two deterministic passes", False), ("the same, compiled", True)):
        with checks.part(name), deterministic(True):
            given = _inputs(checks, sizes[0], "bf16")
            one, two = (_grads(*given, True, 0.01, compiled=compiled) for _ in range(2))
            same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
            why = "`deterministic = true` promises it"
            checks.true(name, same, f"the same bits: {same}", why)


def _inputs(checks: Checks, vocab: int, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [T, D] in the precision, an fp32 weight [V, D], labels [T], three in ten -100."""
    tokens, size = (96, 32) if checks.small else (1000, 1024)
    g = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(tokens, size, generator=g).bfloat16().to(checks.device)
    weight = (torch.randn(vocab, size, generator=g) * size**-0.5).to(checks.device)
    labels = torch.randint(vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < 0.3] = IGNORE
    if precision == "fp32":
        hidden = hidden.float()
    return hidden, weight, labels.to(checks.device)


def _grads(
    hidden: Tensor, weight: Tensor, labels: Tensor, norm_head: bool, z_weight: float, *,
    compiled: bool = False, chunk_tokens: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The loss and its gradients."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    found = head_loss(
        hidden, weight, labels, z_weight=z_weight, norm_head=norm_head, compiled=compiled,
        chunk_tokens=chunk_tokens,
    )  # fmt: skip
    return (found.loss_sum.detach(), *torch.autograd.grad(found.loss_sum, (hidden, weight)))


def _against_fp64(
    checks: Checks, name: str, vocab: int, precision: str, norm_head: bool, z_weight: float, *,
    compiled: bool = False, chunk_tokens: int | None = None,
) -> None:  # fmt: skip
    hidden, weight, labels = _inputs(checks, vocab, precision)
    loss, grad_hidden, grad_weight = _grads(
        hidden, weight, labels, norm_head, z_weight, compiled=compiled, chunk_tokens=chunk_tokens
    )
    wide, rows = hidden.double().requires_grad_(), weight.double().requires_grad_()
    kept = labels != IGNORE
    logits = wide[kept] @ (F.normalize(rows, dim=-1) if norm_head else rows).t()
    expected = F.cross_entropy(logits, labels[kept], reduction="sum")
    expected = expected + z_weight * logits.amax(-1).square().sum()
    grads = torch.autograd.grad(expected, (wide, rows))
    of_loss, of_grads = LIMITS[precision]
    checks.within(f"{name}: loss", relative(loss, expected.detach()), of_loss, WHY)
    why = WHY
    if precision == "bf16" and z_weight:
        of_grads, why = OF_MAX_Z, WHY_MAX_Z
    checks.within(f"{name}: gradient of hidden", relative(grad_hidden, grads[0]), of_grads, why)
    checks.within(f"{name}: gradient of weight", relative(grad_weight, grads[1]), of_grads, why)


@contextmanager
def _no_syncs(device: torch.device) -> Iterator[None]:
    """Make waiting for the device an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _no_wait(checks: Checks) -> None:
    """A micro-batch, forward and backward, as training runs it."""
    model = Model(4099, 256, 512, 1, 2, context_length=256)
    built = build_model(model, Mesh()).to_empty(device=checks.device)
    built.init_weights(torch.Generator().manual_seed(0))
    built.model.bfloat16()
    objective = NextToken(2e-4)
    for seed in range(2):  # the first pass loads kernels, which waits
        batch = packed(random_rows(model, 4, 256, seed))
        with _no_syncs(checks.device) if seed else _no_syncs(torch.device("cpu")):
            loss = objective(built, batch).total
            torch.autograd.backward(loss / 7)
    if checks.small:
        checks.not_run("no host wait", "only a GPU is waited for")
        return
    why = "each wait leaves the device idle until the host has launched again"
    checks.true("no host wait", True, "no synchronizing call in a micro-batch", why)


def _launches(checks: Checks, vocab: int) -> None:
    inputs = _inputs(checks, vocab, "bf16")
    _grads(*inputs, True, 2e-4)
    kinds = [ProfilerActivity.CPU] + ([] if checks.small else [ProfilerActivity.CUDA])
    with profile(activities=kinds) as watched:
        _grads(*inputs, True, 2e-4)
    if checks.small:
        count = sum(event.name.startswith("aten::") for event in watched.events())
        checks.figure("operators of the head's loss", count)
        checks.not_run("launches", "a CPU launches no kernels")
        return
    count = sum(on_gpu(event) for event in watched.events())
    checks.true("the profiler sees kernels", count > 0, count, "or their number means nothing")
    checks.figure("kernels of the head's loss", count, key=True)
    checks.within("launches", count, MOST_LAUNCHES, "5 µs each: 5,120 of them cost more than half")
