"""Copies of an engine's state in host memory, which is used again from save to save.

Memory that is new to a process costs more to get, page by page, than to copy into.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: Bytes of a buffer of `Staging`, and how many there are.
STAGE_BYTES, STAGES = 32 << 20, 4


class HostCopies:
    """Makes sets of copies, one for each save. What one gives back, the next copies into.

    A set that is never given back, as one whose save failed, is freed like any other memory.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._kept: dict[str, Tensor] = {}
        self._staging: Staging | None = None

    @contextmanager
    def begin(self) -> Iterator[CopySet]:
        """A new set: its copies are complete when the block ends."""
        # Swapped at once: the thread that saves may give a set back meanwhile.
        kept, self._kept = self._kept, {}
        if self._device.type != "cuda":
            yield CopySet(self, kept)
            return
        self._staging = self._staging or Staging(self._device)
        with self._staging.copying():
            yield CopySet(self, kept, self._staging)

    def take_back(self, buffers: dict[str, Tensor]) -> None:
        self._kept = buffers


class CopySet:
    """Copies of tensors by key: of one save."""

    def __init__(self, owner: HostCopies, kept: dict[str, Tensor], staging: Staging | None = None):
        self._owner = owner
        self._kept = kept
        self._staging = staging
        self._used: dict[str, Tensor] = {}

    def copy(self, key: str, value: Tensor) -> Tensor:
        """A copy of a contiguous tensor, flattened; to be read when the set is complete.

        Until then the tensor must stay as it is.
        """
        flat = value.detach().reshape(-1)
        buffer = self._kept.pop(key, None)
        if buffer is None or buffer.shape != flat.shape or buffer.dtype != flat.dtype:
            buffer = torch.empty(flat.shape, dtype=flat.dtype)
        self._used[key] = buffer
        if self._staging is None or flat.device.type == "cpu":
            # Offloaded states are on the host already.
            buffer.copy_(flat)
        else:
            self._staging.copy(buffer, flat)
        return buffer

    def give_back(self) -> None:
        """Nobody reads the copies any more: the next set may overwrite them."""
        used, self._used = self._used, {}
        self._owner.take_back(used)


@dataclass
class _Stage:
    """Pinned memory that a copy is on its way into."""

    pinned: Tensor
    """uint8 [STAGE_BYTES]."""
    arrived: torch.cuda.Event
    target: Tensor | None = None
    """Where the bytes go when they have arrived: uint8 [n]; None: there are none."""
    source: Tensor | None = None
    """Where they come from: held, so that the memory is not given to another tensor meanwhile."""

    def empty(self) -> None:
        """Wait for the bytes and hand them on, if there are any."""
        if self.target is not None:
            self.arrived.synchronize()
            self.target.copy_(self.pinned[: len(self.target)])
            self.target = self.source = None


class Staging:
    """A ring of pinned buffers between a GPU and pageable memory.

    The driver copies to pinned memory at the bus's full speed, and while it fills one buffer
    all threads of the host empty another. All of a state in pinned memory would take as long
    to pin as to copy, and could not be swapped out.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stages = [
            _Stage(
                torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True),
                torch.cuda.Event(),  # type: ignore[no-untyped-call]
            )
            for _ in range(STAGES)
        ]
        self._turn = 0

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Within the block `copy` is called; at its end all bytes have arrived."""
        # What is copied may still be computed on the stream that is current.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            yield
        finally:
            # Also after an error: nothing is on its way into a buffer that is used again.
            for _ in self._stages:
                self._next().empty()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy a contiguous tensor on the GPU into one of its type on the host."""
        to, of = target.view(torch.uint8), source.view(torch.uint8)
        for begin in range(0, len(of), STAGE_BYTES):
            stage = self._next()
            stage.empty()
            some = of[begin : begin + STAGE_BYTES]
            with torch.cuda.stream(self._stream):
                stage.pinned[: len(some)].copy_(some, non_blocking=True)
                stage.arrived.record(self._stream)
            stage.target, stage.source = to[begin : begin + len(some)], some

    def _next(self) -> _Stage:
        """The buffer that was filled the longest ago."""
        stage = self._stages[self._turn]
        self._turn = (self._turn + 1) % len(self._stages)
        return stage
