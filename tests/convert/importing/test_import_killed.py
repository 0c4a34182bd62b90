"""An import that was killed: nothing of it is seen, and the next one removes what it left."""

from __future__ import annotations

from pathlib import Path

from made_hf_models import original

from bc2.convert.importing.import_model import import_model
from bc2.registry import Registry


def test_what_a_killed_import_left_is_removed(home: Path, tmp_path: Path) -> None:
    original("llama3").write(tmp_path / "model")
    registry = Registry.open()
    left = registry.staging / "1-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert registry.list() == []
    import_model(registry, tmp_path / "model")
    assert list(registry.staging.iterdir()) == []
