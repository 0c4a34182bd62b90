"""The coordinates of ranks, and what follows from a layout. Imports neither torch nor pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

Axis = Literal["tensor", "sequence", "data"]

#: Ranks next to each other differ in tensor first, then in sequence, then in data.
ORDER: tuple[Axis, ...] = ("tensor", "sequence", "data")


class LayoutFormulas:
    """What follows from a layout, for any class that has its settings.

    `bc2.parallel.parallel_config.ParallelConfig` is one, and says what each setting means.
    """

    # For type checkers only: pydantic would take annotations for fields of its own.
    if TYPE_CHECKING:

        @property
        def tensor(self) -> int: ...
        @property
        def sequence(self) -> int: ...
        @property
        def offload_optimizer(self) -> bool: ...
        def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...

    @property
    def ranks_of_a_replica(self) -> int:
        """Ranks that work on one micro-batch together."""
        return self.tensor * self.sequence

    def on(self, world: int) -> Self:
        """The layout on so many ranks: ZeRO is off where there is only one replica.

        DeepSpeed would do the same work there with more passes over memory.
        """
        if self.offload_optimizer or world // self.tensor > 1:
            return self
        return self.model_copy(update={"zero": 0, "zero_group": None})
