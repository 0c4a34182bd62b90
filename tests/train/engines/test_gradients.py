"""Gradients become fp32 as they come, and replicas sum them in buckets during the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bc2.parallel.mesh import Group
from bc2.train.engines import gradients
from bc2.train.engines.gradients import Gradients, SummedGradients

SIZES = [7, 300, 5, 64]
TWO = Group((0, 1), 0, "replicas")


def pairs(dtype: torch.dtype) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Parameters and masters; the first is its own master in any case, as an embedding is."""
    torch.manual_seed(0)
    made = []
    for number, size in enumerate(SIZES):
        parameter = nn.Parameter(torch.randn(size).to(dtype if number else torch.float32))
        own = parameter.dtype == torch.float32
        made.append((parameter, parameter if own else nn.Parameter(parameter.detach().float())))
    return made


def loss(some: list[tuple[nn.Parameter, nn.Parameter]], seed: int, used: int = 4) -> Tensor:
    """Uses the first parameter first, so that its gradient comes last."""
    torch.manual_seed(seed)
    total = torch.zeros(())
    for parameter, _ in some[:used]:
        total = (total + (parameter.float() * torch.randn(len(parameter))).sum()).sin()
    return total


class Ranks:
    """`dist.all_reduce` of two ranks with the same gradients; sums are there when waited for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.waited = 0

    def all_reduce(self, flat: Tensor, group: Any, async_op: bool) -> Ranks.Work:
        assert (group, async_op) == ("replicas", True)
        assert flat.dtype == torch.float32
        self.sizes.append(flat.numel())
        return Ranks.Work(self, flat)

    class Work:
        def __init__(self, ranks: Ranks, flat: Tensor):
            self.ranks, self.flat, self.sent = ranks, flat, flat.clone()

        def wait(self) -> None:
            assert torch.equal(self.flat.nan_to_num(), self.sent.nan_to_num()), "changed meanwhile"
            self.flat.mul_(2.0)
            self.ranks.waited += 1


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks()
    monkeypatch.setattr(gradients.dist, "all_reduce", made.all_reduce)
    return made


def expected(dtype: torch.dtype, seeds: list[int], used: int = 4) -> list[Tensor | None]:
    """Gradients of separate backward passes, added in fp32 in their order."""
    found: list[Tensor | None] = [None] * len(SIZES)
    for seed in seeds:
        some = pairs(dtype)
        loss(some, seed, used).backward()
        for number, (parameter, _) in enumerate(some):
            if parameter.grad is not None:
                before, grad = found[number], parameter.grad.float()
                found[number] = grad if before is None else before + grad
    return found


def check(some: list[tuple[nn.Parameter, nn.Parameter]], wanted: list[Tensor | None]) -> None:
    for (parameter, master), want in zip(some, wanted, strict=True):
        assert parameter is master or parameter.grad is None
        if want is None:
            assert master.grad is None
        else:
            assert master.grad is not None
            assert torch.equal(master.grad, want)


def test_a_bf16_gradient_is_freed_when_it_has_come() -> None:
    some = pairs(torch.bfloat16)
    made = Gradients(some)
    alive: list[int] = []

    def look(_: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter, _ in some[1:]))

    for parameter, _ in some[1:]:
        parameter.register_post_accumulate_grad_hook(look)
    for seed in (1, 2, 3):
        with made.backward(False):
            loss(some, seed).backward()
    made.finish()
    assert alive == [0] * 9
    check(some, expected(torch.bfloat16, [1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [4, 4 * 128, 4 * 320, 1 << 20])
def test_replicas_sum_each_gradient_once(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, limit: int
) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", limit)
    some = pairs(dtype)
    made = SummedGradients(some, TWO)
    for _ in range(2):  # a second step begins from nothing
        ranks.sizes.clear()
        for seed in (1, 2):
            with made.backward(seed == 2):
                loss(some, seed).backward()
            begun = len(ranks.sizes)
            assert begun == 0 if seed == 1 else begun == len(made._buckets)
        made.finish()
        check(some, [None if g is None else 2 * g for g in expected(dtype, [1, 2])])
        for parameter, master in some:
            parameter.grad = master.grad = None
        made.discard()
    assert len(made._buckets) == {4: 4, 512: 3, 1280: 2, 1 << 20: 1}[limit]


def test_buckets_are_reduced_in_one_order_and_during_the_backward_pass(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 4)
    some = pairs(torch.float32)
    made = SummedGradients(some, TWO)
    begun: list[int] = []
    for parameter, _ in some:
        parameter.register_post_accumulate_grad_hook(lambda _: begun.append(len(ranks.sizes)))
    with made.backward(True):
        loss(some, 1).backward()
    assert ranks.sizes == SIZES[::-1]
    assert begun == [1, 2, 3, 4], "each while the earlier layers' gradients are still to come"
    made.discard()
    for parameter, _ in some:
        parameter.grad = None
    ranks.sizes.clear()
    # This rank's gradients come in the opposite order: all wait for the first bucket.
    with made.backward(True):
        loss(some[::-1], 1).backward()
    assert ranks.sizes == SIZES[::-1]
    assert begun[4:] == [0, 0, 0, 4]


@pytest.mark.parametrize("limit", [4, 1 << 20])
def test_a_weight_without_a_gradient_takes_part(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Another rank may have one."""
    monkeypatch.setattr(gradients, "BUCKET_BYTES", limit)
    some = pairs(torch.bfloat16)
    made = SummedGradients(some, TWO)
    with made.backward(True):
        loss(some, 1, used=2).backward()
    assert not ranks.sizes, "the last layer's gradient is the first bucket's"
    made.finish()
    assert ranks.waited == len(made._buckets)
    found = expected(torch.bfloat16, [1], used=2)
    check(
        some,
        [torch.zeros(n) if g is None else 2 * g for g, n in zip(found, SIZES, strict=True)],
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_backward_pass_that_failed_leaves_nothing(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, several: bool, last: bool
) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 4 * 320)
    some = pairs(torch.bfloat16)
    made = SummedGradients(some, TWO) if several else Gradients(some)

    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError("in the middle of it")

    broken = some[1][0].register_post_accumulate_grad_hook(fail)
    with pytest.raises(torch.OutOfMemoryError), made.backward(last):
        loss(some, 5).backward()
    assert some[2][1].grad is not None
    broken.remove()
    for parameter, master in some:
        parameter.grad = master.grad = None
    made.discard()
    waited = ranks.waited
    with made.backward(True):
        loss(some, 1).backward()
    made.finish()
    times = 2 if several else 1
    check(some, [None if g is None else times * g for g in expected(torch.bfloat16, [1])])
    assert ranks.waited - waited == (2 if several else 0)
