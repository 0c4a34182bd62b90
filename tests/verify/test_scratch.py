"""Homes for trial runs."""

from __future__ import annotations

from pathlib import Path

from bc2.registry import Artifact, Draft, Position, Registry
from bc2.verify.scratch import scratch


def publish(registry: Registry, name: str, step: int, *, finished: bool) -> Artifact:
    key = ("1" if name == "given" else "2") * 64
    draft = Draft("checkpoint", name, key, position=Position(step, step), finished=finished)
    with registry.stage(draft) as staged:
        (staged.path / "trainer.json").write_text(name)
        return staged.publish()


def test_what_a_run_begins_with_is_not_what_it_made(tmp_path: Path) -> None:
    """Also where it is an unfinished checkpoint of a step that the run saves too."""
    registry = Registry(tmp_path / "home")
    given = [publish(registry, "given", step, finished=step == 8) for step in (4, 8)]
    with scratch(registry, given) as room:
        home = room.home("straight")
        made = [publish(home.registry, "made", step, finished=step == 8) for step in (4, 8)]
        assert home.checkpoint(4).digest == made[0].digest
        assert home.end().digest == made[1].digest
        assert len(home.registry.list("checkpoint")) == 4
