"""Registry homes for trial runs: the inputs are links, and nothing is left behind."""

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
from bc2.train.logs.log_rows import LogRow
from bc2.train.logs.runs import RunFolder
from bc2.train.metric import Metrics


@dataclass(frozen=True)
class ScratchHome:
    """The registry home of one trial run."""

    path: Path
    given: frozenset[str] = frozenset()
    """Digests of what its run is trained on, among which may be a checkpoint."""

    @property
    def registry(self) -> Registry:
        # With an index of its own, whatever BC2_REGISTRY_URL says.
        return Registry(self.path)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to use this home."""
        others = {name: text for name, text in os.environ.items() if name != "BC2_REGISTRY_URL"}
        return {**others, "BC2_HOME": str(self.path)}

    @property
    def measures(self) -> Metrics:
        """What the run of this home measures."""
        (folder,) = (self.path / "runs").glob("*")
        return RunFolder(folder).measures

    def timing(self, *events: str) -> list[LogRow]:
        """Rows of timing.jsonl, of every attempt."""
        folders = [RunFolder(path) for path in (self.path / "runs").glob("*")]
        return [row for run in folders for row in run.timing() if row["event"] in events]

    def checkpoint(self, step: int) -> Artifact:
        """The unfinished checkpoint of a step."""
        (found,) = [
            artifact
            for artifact in self._made(finished=False)
            if artifact.position and artifact.position.step == step
        ]
        return found

    def end(self) -> Artifact:
        """The finished checkpoint of the run."""
        (found,) = self._made(finished=True)
        return found

    def _made(self, *, finished: bool) -> list[Artifact]:
        listed = self.registry.list("checkpoint", finished=finished)
        return [artifact for artifact in listed if artifact.digest not in self.given]

    def saving(self) -> bool:
        """Whether a checkpoint is being written, or was when its writer died."""
        return any(self.registry.staging.glob("*"))


@dataclass(frozen=True)
class Scratch:
    """A folder for homes that share their inputs."""

    path: Path
    inputs: Sequence[Artifact]

    def home(self, name: str, *more: Artifact) -> ScratchHome:
        """A new home in which the inputs, and `more`, are registered and not copied.

        An artifact's directory is a link: who holds it holds the original.
        """
        given = frozenset(artifact.digest for artifact in self.inputs)
        home = ScratchHome(self.path / name, given)
        registry = home.registry
        make_directory(home.path)
        _ = registry.index  # made while it is empty: building it from artifacts prints a note
        for artifact in (*self.inputs, *more):
            place = place_of(artifact.kind, artifact.name, artifact.digest)
            link = home.path / "artifacts" / place
            make_directory(link.parent)
            link.symlink_to(artifact.path.resolve(), target_is_directory=True)
        registry.rebuild()
        return home


@contextmanager
def scratch(registry: Registry, inputs: Sequence[Artifact]) -> Iterator[Scratch]:
    """A staging directory of the user's home, on the disk where checkpoints go.

    Like every staging directory it is removed at the end, or, if this process is killed, by the
    next command that sweeps.
    """
    with ExitStack() as held:
        for artifact in inputs:
            held.enter_context(artifact.hold())
        path = staging.create(registry.staging_of("checkpoint", "verify"), held)
        try:
            yield Scratch(path, inputs)
        finally:
            staging.discard(path)


def write_recipe(path: Path, name: str, sections: dict[str, dict[str, Any]]) -> None:
    """Write a recipe as TOML that refers to nothing outside of it."""
    lines = [f"name = {json.dumps(name)}"]
    for section, values in sections.items():
        lines += _table(section, values)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(name: str, values: dict[str, Any]) -> Iterator[str]:
    yield f"\n[{name}]"
    # None is the default where a setting can be None, and TOML cannot express it.
    for key, value in values.items():
        if value is not None and not isinstance(value, dict):
            yield f"{_quoted(key)} = {_quoted(value)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(f"{name}.{_quoted(key)}", value)


def _quoted(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False)
