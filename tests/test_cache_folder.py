"""Where what belongs to the machine is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from bc2.cache_folder import cache_folder


def test_the_first_of_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("BC2_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("BC2_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "bc2"
    # A relative one is ignored, as the standard asks.
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == tmp_path / ".cache" / "bc2"
