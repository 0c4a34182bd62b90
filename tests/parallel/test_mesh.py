"""Where ranks stand and which groups they form; with processes: see `test_layouts`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import RecipeError
from bc2.parallel.mesh import Group, check_same_on_all_ranks, coordinates, group_ranks, make_mesh
from bc2.parallel.parallel_config import ORDER, ParallelConfig

SIZES = st.integers(1, 5)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ParallelConfig, int]:
    """A layout and a number of ranks for it."""
    parallel = ParallelConfig(
        tensor=draw(SIZES), sequence=draw(SIZES), order=draw(st.permutations(ORDER).map(tuple))
    )
    return parallel, parallel.ranks_of_a_replica * draw(SIZES)


def sizes(parallel: ParallelConfig, world: int) -> dict[str, int]:
    data = world // parallel.ranks_of_a_replica
    return {"tensor": parallel.tensor, "sequence": parallel.sequence, "data": data}


@given(layouts())
def test_every_place_has_one_rank(layout: tuple[ParallelConfig, int]) -> None:
    parallel, world = layout
    places = [coordinates(parallel, world, rank) for rank in range(world)]
    assert len({tuple(place.items()) for place in places}) == world
    for axis, size in sizes(parallel, world).items():
        assert {place[axis] for place in places} == set(range(size))


@given(layouts())
def test_neighbours_differ_in_the_first_axis_first(layout: tuple[ParallelConfig, int]) -> None:
    parallel, world = layout
    size = sizes(parallel, world)
    for rank in range(world):
        place = coordinates(parallel, world, rank)
        back, stride = 0, 1
        for axis in parallel.order:
            back += place[axis] * stride
            stride *= size[axis]
        assert back == rank


@given(layouts())
def test_groups_of_each_kind_part_the_ranks(layout: tuple[ParallelConfig, int]) -> None:
    parallel, world = layout
    places = [coordinates(parallel, world, rank) for rank in range(world)]
    found = group_ranks(parallel, world)
    size = sizes(parallel, world)
    assert set(found) == {*size, "replicas"}
    for axis, groups in found.items():
        assert sorted(rank for group in groups for rank in group) == list(range(world))
        for group in groups:
            assert list(group) == sorted(group)
            varied = ("sequence", "data") if axis == "replicas" else (axis,)
            fixed = [other for other in ORDER if other not in varied]
            assert len({tuple(places[rank][other] for other in fixed) for rank in group}) == 1
            if axis in size:
                # A rank's place among its group is its coordinate: parts are cut by it.
                assert [places[rank][axis] for rank in group] == list(range(size[axis]))
            else:
                assert len(group) == size["sequence"] * size["data"]


def test_a_layout_for_several_ranks_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RecipeError, match="asks for a multiple of 6 ranks; this is one") as caught:
        make_mesh(ParallelConfig(tensor=2, sequence=3), torch.device("cpu"))
    assert caught.value.todo == "start it with --nproc 6"


def test_a_group_of_one_does_nothing() -> None:
    group = Group()
    x = torch.tensor([1.0, float("nan")])
    for op in ("sum", "max", "min"):
        assert group.all_reduce(x, op) is x
    assert (group.broadcast_object("a"), group.all_gather_object("a")) == ("a", ["a"])
    check_same_on_all_ranks(group, "recipe", "a")


class Several(Group):
    """Four ranks of which two say something else."""

    def all_gather_object(self, value: object) -> list[object]:  # type: ignore[override]
        return [value, value, "other", "another"]


def test_ranks_that_started_from_something_else_are_named() -> None:
    with pytest.raises(RecipeError, match="rank 2, 3 has another recipe than rank 0: 'other'"):
        check_same_on_all_ranks(Several(), "recipe", "mine")
