"""An engine in a process of its own: what it says when it fails, and that it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import made_export
import numpy as np
import psutil
import pytest
from made_export import Held

from bc2.convert.proof.our_model import OurModel, Rounding
from bc2.convert.proof.worker import open_worker
from bc2.errors import RunFailed

HeldModel = Callable[[str], Held]


def test_our_engine(held: HeldModel, tmp_path: Path) -> None:
    """The same bits as in this process; then it is killed, as if memory ran out."""
    one = held("llama3")
    rounding = Rounding.of(one.source, one.plan("fp16"), tmp_path).to_json()
    ids = [5, 6, 7, 800]
    before = set(psutil.Process(os.getpid()).children())
    with open_worker("bc2", tmp_path, rounding=rounding) as worker:
        (child,) = set(psutil.Process(os.getpid()).children()) - before
        found = worker.log_probs(ids)
        assert isinstance(found, np.memmap)
        assert np.array_equal(found, OurModel(Rounding.from_json(rounding)).log_probs(ids))
        assert len(worker.greedy(ids, 5)) == 5
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(RunFailed, match="bc2 ended with -9 during the proof") as raised:
            worker.log_probs(ids)
    assert "--proof tensors" in str(raised.value)
    assert not child.is_running()


@pytest.mark.slow
def test_what_a_program_does_not_load(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    folder = made_export.write(one.plan(), one.source, tmp_path / "out")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "unheard_of"}))
    with (
        pytest.raises(RunFailed, match=r"(?s)transformers failed in the proof: .*unheard_of"),
        open_worker("transformers", tmp_path, folder=str(folder), remote_code=False),
    ):
        pass
    assert not psutil.Process(os.getpid()).children()
