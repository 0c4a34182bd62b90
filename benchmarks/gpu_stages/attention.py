"""Every attention backend that runs here, ALiBi and the cache, against fp64.

Shapes: T tokens of all documents, H heads, K channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from bc2.errors import UsageError
from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.model.attention import Backend, alibi_slopes, attend
from bc2.train.deterministic import deterministic
from gpu_stages.checks import Checks

#: Of the worst token (forward) and the worst document (gradients), relative L2.
LIMITS = {torch.bfloat16: (2e-2, 2e-2), torch.float32: (1e-4, 2e-4)}
WHY = (
    "kernels sum in fp32; bf16 probabilities and results have 8 bits (2⁻⁹ each, and a few of them "
    "in a row), fp32 ones 24, but for kernels that put three TF32 products in place of one"
)

#: Heads: no power of two, so that ALiBi's slopes are the irregular ones.
HEADS = 6


@dataclass(frozen=True)
class Case:
    """Documents and heads."""

    head_dim: int
    lengths: tuple[int, ...]
    alibi: bool
    key_heads: int = HEADS
    window: int | None = None

    def __str__(self) -> str:
        shown = "+".join(map(str, self.lengths))
        more = [f"K={self.head_dim} {shown}", "ALiBi" if self.alibi else ""]
        more.append(f"{self.key_heads} key heads" if self.key_heads < HEADS else "")
        more.append(f"window {self.window}" if self.window else "")
        return " ".join(filter(None, more))


@dataclass(frozen=True)
class Made:
    """Inputs of a case, and what fp64 makes of them."""

    inputs: tuple[Tensor, ...]
    """q, k, v and the gradient of the result: [T, H, K], k and v of the key heads."""
    out: Tensor
    grads: tuple[Tensor, ...]
    slopes: Tensor | None


def run(checks: Checks, part: str) -> None:
    """All cases on all backends; then the cache; then two deterministic passes."""
    for case in cases(checks.small):
        with checks.part(f"reference of {case}"):
            made = make(case, checks.device)
            for backend in backends(case, checks.small):
                for dtype in (torch.bfloat16, torch.float32):
                    _backend(checks, case, made, backend, dtype)
    for alibi in (False, True):
        for dtype in (torch.bfloat16, torch.float32):
            name = f"cache{' ALiBi' if alibi else ''} {_name(dtype)}"
            with checks.part(name):
                _cache(checks, name, alibi, dtype)
    for alibi in (False, True):
        name = f"two deterministic passes{' ALiBi' if alibi else ''}"
        with checks.part(name), deterministic(True):
            _twice(checks, name, alibi)


def cases(small: bool) -> Iterator[Case]:
    """Head sizes and lengths; a CPU gets the short ones."""
    mixed = (129, 1, 64, 3) if small else (700, 1, 64, 3, 129, 64)
    whole = (64, 64) if small else (4096,)
    for head_dim in (64, 128, 160):
        for alibi in (False, True):
            yield Case(head_dim, mixed, alibi)
            yield Case(head_dim, whole, alibi)
            if head_dim == 128:
                yield from (Case(head_dim, (n,), alibi) for n in (1, 3, 129))
                if not small:
                    yield Case(head_dim, (64, 64, 64, 64), alibi)
                    yield Case(head_dim, (4096, 700, 129, 64, 3, 1), alibi)
    # What Llama, Qwen and Mistral have.
    for lengths in (mixed, whole):
        yield Case(128, lengths, False, key_heads=2)
        yield Case(64, lengths, False, window=50)
        yield Case(128, lengths, False, key_heads=1, window=50)


def backends(case: Case, small: bool) -> list[Backend]:
    """Those to try. The one that is compiled, for CPUs, is tried on one case: that takes long."""
    found: tuple[Backend, ...] = get_args(Backend)
    compiles = small and case.head_dim == 128 and case.lengths == (3,) and not case.alibi
    return [backend for backend in found if backend != "bmm" or compiles]


def make(case: Case, device: torch.device) -> Made:
    """Random bf16 numbers, and their attention in fp64."""
    generator = torch.Generator().manual_seed(len(case.lengths) + case.head_dim)
    q, k, v, g = (
        torch.randn(sum(case.lengths), heads, case.head_dim, generator=generator)
        .bfloat16().to(device)
        for heads in (HEADS, case.key_heads, case.key_heads, HEADS)
    )  # fmt: skip
    slopes = alibi_slopes(HEADS).to(device) if case.alibi else None
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    outs = []
    for q1, k1, v1 in zip(*(x.split(case.lengths) for x in wide), strict=True):
        outs.append(reference(q1, k1, v1, slopes, case.window))
    out = torch.cat(outs)
    grads = torch.autograd.grad(out, wide, g.double())
    return Made((q, k, v, g), out.detach(), grads, slopes)


def reference(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, window: int | None
) -> Tensor:  # fmt: skip
    """Attention of one document, head by head, with all scores at once."""
    places = torch.arange(len(q), device=q.device)
    distance = (places[None, :] - places[:, None]).to(q.dtype)
    hidden = distance > 0 if window is None else (distance > 0) | (distance <= -window)
    found = []
    for head in range(q.shape[1]):
        key = head * k.shape[1] // q.shape[1]
        scores = q[:, head] @ k[:, key].t() / math.sqrt(q.shape[-1])
        if slopes is not None:
            scores = scores + slopes[head].to(q.dtype) * distance
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        found.append(weights @ v[:, key])
    return torch.stack(found, dim=1)


def _backend(
    checks: Checks, case: Case, made: Made, backend: Backend, dtype: torch.dtype
) -> None:  # fmt: skip
    name = f"{backend} {_name(dtype)} {case}"
    with checks.part(name):
        try:
            out, grads = _attend(case, made, backend, dtype)
        except (UsageError, NotImplementedError) as error:
            if backend == "auto":
                raise
            checks.not_run(name, _first_sentence(error))
            return
        except (RuntimeError, AssertionError, ValueError) as error:
            # What runs on CUDA in 16 bits only says so in its own words.
            if dtype == torch.bfloat16 and checks.device.type == "cuda":
                raise
            if backend in ("auto", "sdpa", "bmm"):
                raise
            checks.not_run(name, _first_sentence(error))
            return
        forward, backward = LIMITS[dtype]
        checks.within(f"{name}: forward", worst_token(out, made.out), forward, WHY)
        error = max(
            worst_document(found, expected, made.grads[2], case.lengths)
            for found, expected in zip(grads, made.grads, strict=True)
        )
        checks.within(f"{name}: gradients", error, backward, WHY)


def _attend(
    case: Case, made: Made, backend: Backend, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = [x.to(dtype).requires_grad_() for x in made.inputs[:3]]
    cu_seqlens = torch.tensor([0, *case.lengths]).cumsum(0, dtype=torch.int32)
    cu_seqlens = cu_seqlens.to(made.out.device)
    out = attend(*inputs, cu_seqlens, max(case.lengths), made.slopes, backend, case.window)
    return out.detach(), torch.autograd.grad(out, inputs, made.inputs[3].to(dtype))


def worst_token(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a token's result [H · K]: one wrong token is not averaged."""
    gap = (found.double() - expected).flatten(1).norm(dim=1)
    return float((gap / expected.flatten(1).norm(dim=1)).max())


def worst_document(
    found: Tensor, expected: Tensor, scale: Tensor, lengths: Sequence[int]
) -> float:  # fmt: skip
    """The largest relative error of a document's gradient.

    Args:
        scale: a gradient that is never small, of which a quarter counts too: that of the queries of
            a document of one token is 0, and what kernels make of it is the rounding of terms that
            cancel.
    """
    worst = 0.0
    for gap, right, other in zip(
        (found.double() - expected).split(lengths), expected.split(lengths), scale.split(lengths),
        strict=True,
    ):  # fmt: skip
        worst = max(worst, float(gap.norm() / torch.hypot(right.norm(), other.norm() / 4)))
    return worst


def _cache(checks: Checks, name: str, alibi: bool, dtype: torch.dtype) -> None:
    """A prompt in two pieces and then a token, beside another sequence, out of the cache."""
    lengths = (45, 19) if checks.small else (700, 129)
    size, head_dim = 16, 128
    made = make(Case(head_dim, lengths, alibi), checks.device)
    blocks = [-(-length // size) for length in lengths]
    cache = KVCache(
        sum(blocks), size, layers=1, heads=HEADS, head_dim=head_dim, dtype=dtype,
        device=checks.device, poison=True,
    )  # fmt: skip
    cache.clear(range(sum(blocks)))
    held = [range(blocks[0]), range(blocks[0], sum(blocks))]
    worst = 0.0
    begins = [0, lengths[0]]
    done = [0, 0]
    for share in (0.4, 1.0, None):
        ends = [n if share is None else max(1, int(share * (n - 1))) for n in lengths]
        segments = [
            Segment(done[i], ends[i] - done[i], list(held[i])[: -(-ends[i] // size)])
            for i in range(2)
        ]
        rows = torch.cat([torch.arange(begins[i] + done[i], begins[i] + ends[i]) for i in range(2)])
        rows = rows.to(checks.device)
        q, k, v = (x[rows].to(dtype) for x in made.inputs[:3])
        with torch.no_grad():
            out = PagedStep(cache, segments).attend(0, q, k, v, made.slopes)
        worst = max(worst, worst_token(out, made.out[rows]))
        done = ends
    checks.within(name, worst, LIMITS[dtype][0], WHY)


def _twice(checks: Checks, name: str, alibi: bool) -> None:
    case = Case(128, (129, 1, 64) if checks.small else (700, 1, 2048, 64), alibi)
    made = make(case, checks.device)
    passes = [_attend(case, made, "auto", torch.bfloat16) for _ in range(2)]
    one, two = ([out, *grads] for out, grads in passes)
    same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    checks.true(name, same, f"the same bits: {same}", "`deterministic = true` promises it")


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0].partition(". ")[0][:200]


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
