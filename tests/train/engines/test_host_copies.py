"""A GPU's state comes to the host through a ring of pinned buffers; torch.cuda is a fake here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bc2.train.engines import host_copies
from bc2.train.engines.host_copies import HostCopies, Staging


class FakeStream:
    """Does nothing until it is waited for: the latest that a GPU may do it."""

    def __init__(self, device: Any = None):
        self.queue: list[Callable[[], object]] = []
        self.after: list[FakeStream] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.after.append(other)

    def run(self) -> None:
        for other in self.after:
            other.run()
        for act in self.queue:
            act()
        self.queue.clear()


class FakeEvent:
    def record(self, stream: FakeStream) -> None:
        self.stream, self.until = stream, len(stream.queue)

    def synchronize(self) -> None:
        for act in self.stream.queue[: self.until]:
            act()
        del self.stream.queue[: self.until]


class OnGpu:
    """A tensor that says it is on a GPU; copies from it wait in the current stream."""

    def __init__(self, values: Tensor):
        self.values, self.device, self.dtype = values, torch.device("cuda:1"), values.dtype
        self.shape = values.shape

    def __len__(self) -> int:
        return len(self.values)

    def detach(self) -> OnGpu:
        return self

    def reshape(self, *shape: int) -> OnGpu:
        return OnGpu(self.values.reshape(*shape))

    def view(self, dtype: torch.dtype) -> OnGpu:
        return OnGpu(self.values.view(dtype))

    def __getitem__(self, which: slice) -> OnGpu:
        return OnGpu(self.values[which])


class Pinned:
    def __init__(self, values: Tensor, gpu: Gpu):
        self.values, self.gpu = values, gpu

    def __getitem__(self, which: slice) -> Any:
        values, gpu = self.values[which], self.gpu

        class Slice(Tensor):
            def copy_(self, source: Any, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
                assert non_blocking
                assert gpu.current is not gpu.default
                gpu.current.queue.append(lambda: values.copy_(source.values))
                return self

        return values.as_subclass(Slice)


class Gpu:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.default = self.current = FakeStream()
        self.pinned = 0
        plain = torch.empty

        def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
            if not pin_memory:
                return plain(*shape, **options)
            self.pinned += 1
            return Pinned(plain(*shape, **options).fill_(99), self)

        @contextmanager
        def stream(made: FakeStream) -> Iterator[None]:
            self.current, before = made, self.current
            yield
            self.current = before

        monkeypatch.setattr(host_copies, "STAGE_BYTES", 64)
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.default)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


#: Numbers of tensors: none, less than a buffer, exactly one, many, a large one that goes round.
COUNTS = [0, 1, 16, 15, 17, 33, 1000, 3]


def test_all_bytes_arrive_whatever_the_sizes(gpu: Gpu) -> None:
    copies = HostCopies(torch.device("cuda:1"))
    for seed in range(3):
        torch.manual_seed(seed)
        values = {str(i): torch.randn(count) for i, count in enumerate(COUNTS)}
        with copies.begin() as made:
            got = {key: made.copy(key, OnGpu(value)) for key, value in values.items()}  # type: ignore[arg-type]
        for key, value in values.items():
            assert torch.equal(got[key], value), key
        made.give_back()
    assert gpu.pinned == host_copies.STAGES, "once for all saves"


def test_the_copies_wait_for_what_is_computed_and_the_block_for_the_copies(gpu: Gpu) -> None:
    copies = HostCopies(torch.device("cuda:1"))
    with copies.begin() as made:
        got = made.copy("a", OnGpu(torch.arange(4.0)))  # type: ignore[arg-type]
        assert copies._staging is not None
        assert copies._staging._stream.after == [gpu.default]
        assert len(copies._staging._stream.queue) == 1, "on its way"
    assert torch.equal(got, torch.arange(4.0))


def test_nothing_is_on_its_way_after_an_error(gpu: Gpu) -> None:
    staging = Staging(torch.device("cuda:1"))
    target = torch.empty(100)

    def fail() -> None:
        with staging.copying():
            staging.copy(target, OnGpu(torch.arange(100.0)))  # type: ignore[arg-type]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(target, torch.arange(100.0))
    assert all(stage.target is None for stage in staging._stages)


def test_offloaded_states_need_no_stage(gpu: Gpu) -> None:
    with HostCopies(torch.device("cuda:1")).begin() as made:
        got = made.copy("a", torch.arange(40.0))
        assert torch.equal(got, torch.arange(40.0))


def test_memory_is_used_again_where_it_fits() -> None:
    copies = HostCopies(torch.device("cpu"))
    with copies.begin() as first:
        one = {key: first.copy(key, torch.ones(n)).data_ptr() for key, n in (("a", 8), ("b", 9))}
    first.give_back()
    with copies.begin() as second:
        assert second.copy("a", torch.zeros(2, 4)).data_ptr() == one["a"]
        assert second.copy("b", torch.zeros(10)).shape == (10,)
        assert torch.equal(second.copy("c", torch.ones(3)), torch.ones(3))
    with copies.begin() as third:
        assert third.copy("a", torch.zeros(8)).data_ptr() != one["a"], "not given back yet"
