"""What the launcher tells torch's agent."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bc2.launch import elastic
from bc2.launch.restarts import Restarts


@pytest.mark.parametrize(
    ("ignored", "handled"),
    [("", "SIGINT,SIGTERM,SIGHUP"), (str(int(signal.SIGHUP)), "SIGINT,SIGTERM")],
)
def test_torch_sets_no_handler_for_a_signal_that_is_ignored(
    ignored: str, handled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(elastic.signals, "ignored", lambda: ignored)
    ranks: Any = SimpleNamespace(options=[], nproc=2)
    elastic._prepare_environment(ranks, Restarts(0, tmp_path / "steps"))
    assert os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] == handled
