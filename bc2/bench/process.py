"""The parent's end of a contender's process."""

from __future__ import annotations

import os

from bc2 import ENVIRONMENT, KEEP_ENVIRONMENT
from bc2.bench.spec import Spec
from bc2.train.child import Child


class WorkerProcess(Child):
    """A contender in a process of its own; see `bc2.bench.worker`."""

    def __init__(self, spec: Spec):
        self.spec = spec
        super().__init__("bc2.bench.worker", spec.model_dump_json(), environment(tuned=spec.tuned))


def environment(*, tuned: bool) -> dict[str, str]:
    """The environment of a worker.

    Args:
        tuned: with bc2's own settings; else without those that bc2 made for this process,
            and kept from being made again.
    """
    if tuned:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if ENVIRONMENT.get(name) != value}
    return {**kept, KEEP_ENVIRONMENT: "1"}
