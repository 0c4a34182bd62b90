"""What the launcher tells torch's agent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bc2.launch import elastic
from bc2.launch.rank_options import Ranks


@pytest.mark.parametrize(
    ("ignored", "handled"),
    [("", "SIGINT,SIGTERM,SIGHUP"), (str(int(signal.SIGHUP)), "SIGINT,SIGTERM")],
)
def test_torch_sets_no_handler_for_a_signal_that_is_ignored(
    ignored: str, handled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic.signals, "ignored", lambda: ignored)
    # Not by the environment: `launch_agent` sets it from this, whatever it was.
    assert elastic._config(Ranks(nproc=2), tmp_path, False).signals_to_handle == handled
