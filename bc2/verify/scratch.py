"""Homes for runs that are only tried: inputs by link, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.files import make_directory
from bc2.registry import Artifact, Registry, staging
from bc2.registry.draft import place_of
from bc2.train.runs import Row, RunFolder


@dataclass(frozen=True)
class Home:
    """A registry home of one tried run."""

    path: Path

    @property
    def registry(self) -> Registry:
        # Its own index, whatever BC2_REGISTRY_URL says.
        return Registry(self.path)

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose registry this is."""
        kept = {name: text for name, text in os.environ.items() if name != "BC2_REGISTRY_URL"}
        return {**kept, "BC2_HOME": str(self.path)}

    def timing(self, *events: str) -> list[Row]:
        """Rows of timing.jsonl, of every attempt."""
        folders = [RunFolder(path) for path in (self.path / "runs").glob("*")]
        return [row for run in folders for row in run.timing() if row["event"] in events]

    def checkpoint(self, step: int) -> Artifact:
        """The unfinished checkpoint of a step."""
        (found,) = [
            artifact
            for artifact in self.registry.list("checkpoint")
            if not artifact.finished and artifact.position and artifact.position.step == step
        ]
        return found

    def saving(self) -> bool:
        """Whether a checkpoint is being written, or was when its writer died."""
        return any(self.registry.staging.glob("*"))


@dataclass(frozen=True)
class Scratch:
    """Room for homes that share their inputs."""

    path: Path
    inputs: Sequence[Artifact]

    def home(self, name: str, *more: Artifact) -> Home:
        """A new home in which the inputs, and `more`, are registered and not copied.

        An artifact's directory is there as a link: whoever holds it holds the original.
        """
        home = Home(self.path / name)
        registry = home.registry
        make_directory(home.path)
        _ = registry.index  # made empty, so that nothing is said of its making
        for artifact in (*self.inputs, *more):
            place = place_of(artifact.kind, artifact.name, artifact.digest)
            link = home.path / "artifacts" / place
            make_directory(link.parent)
            link.symlink_to(artifact.path.resolve(), target_is_directory=True)
        registry.rebuild()
        return home


@contextmanager
def scratch(registry: Registry, inputs: Sequence[Artifact]) -> Iterator[Scratch]:
    """A staging directory of the user's home, on the disk that checkpoints will be on.

    As every staging directory it is gone at the end, and if this process is killed, with the
    next command that sweeps.
    """
    with ExitStack() as held:
        for artifact in inputs:
            held.enter_context(artifact.hold())
        path = staging.create(registry.staging, held)
        try:
            yield Scratch(path, inputs)
        finally:
            staging.discard(path)


def write_recipe(path: Path, name: str, sections: dict[str, dict[str, Any]]) -> None:
    """A recipe as TOML, with nothing outside it that it refers to."""
    lines = [f"name = {json.dumps(name)}"]
    for section, values in sections.items():
        lines += _table(section, values)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(name: str, values: dict[str, Any]) -> Iterator[str]:
    yield f"\n[{name}]"
    # What is None is its default, and TOML has no word for it.
    for key, value in values.items():
        if value is not None and not isinstance(value, dict):
            yield f"{_quoted(key)} = {_quoted(value)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(f"{name}.{_quoted(key)}", value)


def _quoted(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False)
