"""A certificate in the registry."""

from __future__ import annotations

import json
from pathlib import Path

from bc2.registry import Draft, Registry
from bc2.verify.certificate import CERTIFICATE, Certificate, register_certificate


def test_a_certificate_is_registered_as_one(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    with registry.stage(Draft(kind="checkpoint", name="x", key="a" * 64)) as staged:
        (staged.path / "weights").write_bytes(b"w")
        model = staged.publish()
    artifact = register_certificate(Certificate.now({"about": "x"}, []), registry, model)
    assert artifact.title == "certificate/resume-x"
    assert registry.parents(artifact) == [model]
    assert artifact.manifest.facts["holds"] is True
    assert json.loads(artifact.file(CERTIFICATE).read_text())["about"] == "x"
    assert registry.list("scores") == []
