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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BC2_CACHE", "here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("BC2_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "bc2"
    # A relative one is ignored, as the standard asks.
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == tmp_path / ".cache" / "bc2"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BC2_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder() is None
