"""Which engine works on the parts: processes of this machine, or a Ray cluster.

The latter, `bc2.data.prep.ray_engine`, is imported only when it is asked for: it needs the `ray`
extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from bc2.data.prep.engine import PrepEngine, ProcessEngine
from bc2.data.workers import cores

EngineName = Literal["local", "ray"]


@contextmanager
def open_engine(name: EngineName, workers: int | None, text_bytes: int) -> Iterator[PrepEngine]:
    """The engine by name, for as long as the context lasts.

    Args:
        workers: processes; if None one a core, but one alone for little text.
        text_bytes: about how much there is to do.
    """
    with ExitStack() as held:
        if name == "ray":
            from bc2.data.prep.ray_engine import RayEngine

            yield RayEngine()
        else:
            yield ProcessEngine(workers or _worth(text_bytes), held)


def _worth(text_bytes: int) -> int:
    """A process a core, but none for less text than takes as long as its start."""
    return min(cores(), 1 + text_bytes // (16 << 20))
