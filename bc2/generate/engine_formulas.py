"""What follows from the inference engine's settings. Imports neither torch nor pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING


class EngineFormulas:
    """For any class that has the settings of `bc2.generate.engine_config.EngineConfig`."""

    # For type checkers only: pydantic would take annotations for fields of its own.
    if TYPE_CHECKING:

        @property
        def max_running(self) -> int: ...
        @property
        def step_tokens(self) -> int: ...

    @property
    def most_running(self) -> int:
        """Sequences that decode together at most: each reads a token in every pass."""
        return min(self.max_running, self.step_tokens)
