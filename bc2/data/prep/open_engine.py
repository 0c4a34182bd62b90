"""Open the engine that works on the parts: processes of this machine, or a Ray cluster.

The Ray engine, `bc2.data.prep.ray_engine`, needs the `ray` extra, so it is imported only when it is
used.
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
    """Open an engine by name; it is closed at the end of the context.

    Args:
        workers: number of processes; if None, one for each core, or fewer for little text.
        text_bytes: about how much text there is.

    Raises:
        UsageError: Ray or Daft is not installed.
        RunFailed: no Ray cluster can be reached.
    """
    with ExitStack() as held:
        if name == "ray":
            from bc2.data.prep.ray_engine import RayEngine

            yield RayEngine()
        else:
            yield ProcessEngine(workers or _useful_workers(text_bytes), held)


def _useful_workers(text_bytes: int) -> int:
    """The number of processes: at most one for each core.

    Every process but the first has 16 MiB of text, which takes longer than its start.
    """
    return min(cores(), 1 + text_bytes // (16 << 20))
