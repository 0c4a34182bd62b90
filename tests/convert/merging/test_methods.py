"""Each method against its equations, number by number in float64; and what it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bc2.convert.merging.measures import ReadParts, gram, magnitudes_at, mean_cosine
from bc2.convert.merging.methods import (
    linear,
    model_stock,
    model_stock_factor,
    slerp,
    slerp_weights,
    task_arithmetic,
    ties,
)

SHAPE = (31, 17)


def drawn(count: int, seed: int = 0, near: float = 0.1) -> list[Tensor]:
    """A base and models around it, all with something in common."""
    chance = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=chance)
    common = near * torch.randn(SHAPE, generator=chance)
    return [
        base,
        *(base + common + near * torch.randn(SHAPE, generator=chance) for _ in range(count)),
    ]


def wide(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def agrees(found: Tensor, expected: np.ndarray, atol: float = 2e-6) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


def cut(*tensors: Tensor, rows: int = 7) -> Iterator[list[Tensor]]:
    yield from (list(parts) for parts in zip(*(t.split(rows) for t in tensors), strict=True))


# Naive versions: from the papers' equations, one number at a time where there are branches.


def naive_ties(
    base: np.ndarray, models: list[np.ndarray], kept: list[int], weights: list[float], scale: float
) -> np.ndarray:
    vectors = [(model - base).ravel() for model in models]
    for vector, count in zip(vectors, kept, strict=True):
        order = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))
        vector[order[count:]] = 0.0
    merged = base.ravel().copy()
    for i in range(len(merged)):
        total = sum(w * v[i] for w, v in zip(weights, vectors, strict=True))
        same = [
            (w, v[i])
            for w, v in zip(weights, vectors, strict=True)
            if v[i] != 0 and np.sign(v[i]) == np.sign(total)
        ]
        if same:
            merged[i] += scale * sum(w * x for w, x in same) / sum(w for w, _ in same)
    return merged.reshape(base.shape)


def naive_slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    one, other = first.ravel(), second.ravel()
    angle = math.acos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def naive_stock(base: np.ndarray, models: list[np.ndarray]) -> np.ndarray:
    vectors = [(model - base).ravel() for model in models]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(vectors, 2)]
    count, cosine = len(models), float(np.mean(cosines))
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * np.mean(models, axis=0) + (1 - t) * base


def reads(parts: Iterable[list[Tensor]]) -> list[ReadParts]:
    return [lambda part=part: part for part in parts]


def stock_of(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, float, float]:
    parts = ([part - b for part in rest] for b, *rest in cut(base, *models))
    cosine = mean_cosine(gram(reads(parts), len(models)))
    factor = model_stock_factor(cosine, len(models))
    return model_stock(base, models, factor), cosine, factor


def thresholds_of(base: Tensor, models: Sequence[Tensor], kept: list[int]) -> list[float]:
    def blocks() -> Iterator[list[Tensor]]:
        for b, *rest in cut(base, *models):
            yield [part - b for part in rest]

    return magnitudes_at(lambda: reads(blocks()), kept)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.5, -0.25, -0.25)])
def test_linear(weights: tuple[float, ...]) -> None:
    _, *models = drawn(3)
    expected = sum(w * m for w, m in zip(weights, wide(models), strict=True))
    agrees(linear(models, weights), expected)


def test_linear_of_one_is_that_one_and_the_order_is_nothing() -> None:
    _, *models = drawn(3)
    assert torch.equal(linear(models, (0.0, 1.0, 0.0)), models[1])
    agrees(linear(models[::-1], (0.2, 0.3, 0.5)), wide([linear(models, (0.5, 0.3, 0.2))])[0])


@pytest.mark.parametrize(("weights", "scale"), [((1.0, 1.0), 0.4), ((1.0, -0.5), 1.0)])
def test_task_arithmetic(weights: tuple[float, ...], scale: float) -> None:
    base, *models = drawn(2)
    b, *ms = wide([base, *models])
    expected = b + scale * sum(w * (m - b) for w, m in zip(weights, ms, strict=True))
    agrees(task_arithmetic(base, models, weights, scale), expected)


def test_task_arithmetic_by_nothing_and_by_one() -> None:
    base, model, other = drawn(2)
    assert torch.equal(task_arithmetic(base, [model, other], (1.0, 1.0), 0.0), base)
    agrees(task_arithmetic(base, [model], [1.0], 1.0), wide([model])[0])
    # To take a task away is to go as far to the other side.
    agrees(task_arithmetic(base, [model], [1.0], -1.0), wide([2 * base - model])[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.1, 0.4)])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_ties(weights: tuple[float, ...], density: float) -> None:
    base, *models = drawn(3)
    kept = [int(density * base.numel()), int(0.8 * density * base.numel()), base.numel() // 3]
    found = ties(base, models, thresholds_of(base, models, kept), weights, 0.6)
    # In fp32 the difference is rounded, and what is kept must not turn on that.
    deltas = [m - base for m in models]
    b = base.double().numpy()
    expected = naive_ties(b, [b + d for d in wide(deltas)], kept, list(weights), 0.6)
    agrees(found, expected)


def test_ties_by_hand() -> None:
    """Figure 1 of the paper, as it were: trimmed, outvoted, agreed, and of no one."""
    base = torch.zeros(4)
    models = [torch.tensor([3.0, -1.0, 2.0, 0.1]), torch.tensor([-4.0, -3.0, 0.2, 0.0])]
    found = ties(base, models, [1.0, 1.0], [1.0, 1.0], 1.0)
    assert found.tolist() == [-4.0, -2.0, 2.0, 0.0]
    # Equal and opposite: no sign is elected, and nothing moves.
    found = ties(base, [models[0], -models[0]], [0.0, 0.0], [1.0, 1.0], 1.0)
    assert found.tolist() == [0.0] * 4


def test_ties_of_one_model_whole_is_that_model() -> None:
    base, model = drawn(1)
    agrees(ties(base, [model], [0.0], [0.4], 1.0), wide([model])[0])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp(t: float) -> None:
    first, second = drawn(1, near=1.0)
    cosine = mean_cosine(gram(reads(cut(first, second)), 2))
    agrees(slerp(first, second, t, cosine), naive_slerp(*wide([first, second]), t))
    agrees(slerp(second, first, 1 - t, cosine), wide([slerp(first, second, t, cosine)])[0])


def test_slerp_of_units_stays_on_the_sphere_and_halves_the_angle() -> None:
    first, second = (one / one.norm() for one in drawn(1, near=1.0))
    cosine = mean_cosine(gram(reads(cut(first, second)), 2))
    half = slerp(first, second, 0.5, cosine)
    assert float(half.norm()) == pytest.approx(1.0, abs=1e-6)
    to_first = math.acos(float((half * first).sum()))
    assert to_first == pytest.approx(math.acos(cosine) / 2, abs=1e-4)


def test_slerp_of_one_direction_is_straight_and_of_opposites_refused() -> None:
    (first,) = drawn(0)
    assert slerp_weights(0.25, 1.0) == (0.75, 0.25)
    agrees(slerp(first, 3 * first, 0.5, 1.0), 2 * wide([first])[0])
    # No step where the arc becomes its chord.
    at, past = slerp_weights(0.3, 0.99949), slerp_weights(0.3, 0.99951)
    assert at == pytest.approx(past, abs=1e-4)
    with pytest.raises(ValueError, match="opposites"):
        slerp_weights(0.5, -1.0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock(count: int) -> None:
    base, *models = drawn(count)
    b, *ms = wide([base, *models])
    found, cosine, factor = stock_of(base, models)
    assert 0.3 < cosine < 0.7
    assert 0 < factor < 1
    agrees(found, naive_stock(b, ms))


@pytest.mark.parametrize("count", [2, 4])
def test_model_stock_is_the_nearest_point_to_the_centre(count: int) -> None:
    """Sections 3 and 4: models lie around a centre, each off it in a direction of its own, and the
    base in another; of the plane through all of them it is what is nearest to that centre."""
    chance = torch.Generator().manual_seed(1)
    axes, _ = torch.linalg.qr(torch.randn(60, count + 1, generator=chance, dtype=torch.float64))
    centre = torch.randn(60, generator=chance, dtype=torch.float64)
    base = centre + 2.0 * axes[:, 0]
    models = [centre + 0.7 * axes[:, i + 1] for i in range(count)]
    spans = torch.stack([model - base for model in models], 1)
    shares = torch.linalg.lstsq(spans, (centre - base)[:, None]).solution
    nearest = base + (spans @ shares)[:, 0]
    found, _, _ = stock_of(base.float()[:, None], [model.float()[:, None] for model in models])
    agrees(found[:, 0], nearest.numpy())


def test_model_stock_at_its_ends() -> None:
    base, first, second = drawn(2)
    found, cosine, factor = stock_of(base, [first, first.clone()])
    assert (cosine, factor) == pytest.approx((1.0, 1.0), abs=1e-6)
    agrees(found, wide([first])[0])
    # Orthogonal: nothing in common, so the base.
    flat = second - base
    off = first - base
    off = off - flat * (off * flat).sum() / (flat * flat).sum()
    found, cosine, factor = stock_of(base, [base + off, base + flat])
    assert (cosine, factor) == pytest.approx((0.0, 0.0), abs=1e-6)
    agrees(found, wide([base])[0])


def test_model_stock_with_what_did_not_move() -> None:
    base, first = drawn(1)
    found, cosine, factor = stock_of(base, [base, first])
    assert (cosine, factor) == (0.0, 0.0)
    assert torch.equal(found, base)


@pytest.mark.parametrize(("cosine", "count"), [(-1.0, 2), (-0.96, 2), (-0.49, 3), (-0.25, 5)])
def test_model_stock_is_refused_where_it_divides_by_nothing(cosine: float, count: int) -> None:
    with pytest.raises(ValueError, match=f"N = {count}"):
        model_stock_factor(cosine, count)


def test_model_stock_near_there_is_not_refused() -> None:
    assert model_stock_factor(-0.9, 2) == pytest.approx(-18.0)


def test_cosines_of_tensors_in_parts() -> None:
    _, *models = drawn(4, near=1.0)
    flat = torch.stack([m.reshape(-1) for m in models]).double()
    products = gram(reads(cut(*models)), 4)
    torch.testing.assert_close(products, flat @ flat.T, rtol=1e-6, atol=1e-4)
    expected = [float(torch.cosine_similarity(a, b, 0)) for a, b in combinations(flat, 2)]
    assert mean_cosine(products) == pytest.approx(sum(expected) / 6, abs=1e-6)


@pytest.mark.parametrize("size", [2.0**-110, 2.0**-68, 2.0**68, 2.0**110])
def test_cosines_are_the_same_at_any_size(size: float) -> None:
    """Squares of such numbers are 0 or infinite in fp32."""
    _, *models = drawn(3, near=1.0)
    expected = mean_cosine(gram(reads(cut(*models)), 3))
    found = mean_cosine(gram(reads(cut(*(model * size for model in models))), 3))
    assert found == pytest.approx(expected, abs=1e-7)


def test_cosines_are_the_same_by_any_number_of_threads() -> None:
    chance, threads = torch.Generator().manual_seed(3), torch.get_num_threads()
    models = [torch.randn(700, 301, generator=chance) + 0.5 for _ in range(2)]
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gram(reads(cut(*models, rows=400)), 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@given(
    st.lists(
        st.floats(-(2.0**120), 2.0**120, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45]),
        min_size=1,
        max_size=60,
    ),
    st.data(),
)
def test_magnitudes_at_a_rank_are_those_of_sorting(
    numbers: list[float], data: st.DataObject
) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float32)
    rank = data.draw(st.integers(1, len(numbers)))
    found = magnitudes_at(lambda: reads([part, -part] for part in tensor.split(7)), [rank, rank])
    expected = sorted(tensor.abs().tolist(), reverse=True)[rank - 1]
    assert found == [expected, expected]
