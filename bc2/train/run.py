"""One training run: what identifies it, where its folder is, which checkpoints are its own."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bc2.console import warn
from bc2.files import replace_durably
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.pipeline.stage import Inputs
from bc2.registry import Artifact, Registry, stage_key
from bc2.registry.removal import StillNeeded
from bc2.train.algorithm import Algorithm
from bc2.train.checkpoint import reading_order
from bc2.train.device import pick_compile, pick_precision, rank_device
from bc2.train.logs.runs import RunFolder
from bc2.train.memory.estimate import settle_checkpointing
from bc2.train.run_config import RunConfig
from bc2.train.training_settings import TrainingSettings

#: A file in the run's folder while ``--fresh`` trains it anew: the digests of the checkpoints
#: that were there before, one a line. The new training must not resume from them.
FRESH = "fresh"


@dataclass(frozen=True)
class Run:
    """A training run, identified by what its results depend on."""

    settings: TrainingSettings
    """With what the machine decides filled in."""
    inputs: Inputs
    """What it is trained on, and what its weights start from."""
    parents: tuple[Artifact, ...]
    """What its checkpoints descend from: the inputs and what belongs to them."""
    recipe: Mapping[str, Any]
    """As it is recorded."""
    command: str
    """What a person types to resume it."""

    @classmethod
    def of_inputs(
        cls, settings: TrainingSettings, inputs: Inputs, registry: Registry,
        recorded: Mapping[str, Any], command: Sequence[str] = (),
    ) -> Run:  # fmt: skip
        """A run with the settings that the machine decides filled in: they are part of its key."""
        config = settings.training
        device = rank_device(config.device)
        settings = settings.with_training(
            precision=pick_precision(config.precision, device),
            device=str(device),
            compile=pick_compile(config.compile, device),
        )
        config = settle_checkpointing(settings.model, settings.training, settings.parallel.tensor)
        parents = settings.algorithm.parents(inputs, registry)
        return cls(
            replace(settings, training=config), inputs, parents, recorded, shlex.join(command)
        )

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def algorithm(self) -> Algorithm:
        return self.settings.algorithm

    @property
    def config(self) -> RunConfig:
        """The algorithm's section."""
        return self.settings.training

    @property
    def model(self) -> ModelConfig:
        return self.settings.model

    @property
    def parallel(self) -> ParallelConfig:
        """Its layout over ranks, which changes results by rounding only."""
        return self.settings.parallel

    @property
    def key(self) -> str:
        """The stage key of its checkpoints."""
        settings = {self.config.section: self.config.keyed(), "model": self.model.keyed()}
        if alike := self._inputs_alike():
            settings["named inputs"] = alike
        return stage_key("checkpoint", self.algorithm.version, settings, self.inputs.digests())

    def _inputs_alike(self) -> dict[str, list[str]]:
        """Digests by name of the inputs whose kind does not tell them apart, where two are given
        or may be left out: a model that training begins with, and one that it is held to.
        """
        needed = self.algorithm.all_inputs
        kinds = Counter(one.kind for one in needed)
        return {
            one.key: [artifact.digest for artifact in self.inputs.by_name.get(one.key, ())]
            for one in needed
            if kinds[one.kind] > 1
        }

    def folder(self, registry: Registry) -> Path:
        """Where the run's metrics, plots and trackers live."""
        return RunFolder.of(registry, self.name, self.key).path

    def finished(self, registry: Registry) -> Artifact | None:
        """The run's finished checkpoint; None also while ``--fresh`` is training it anew."""
        if self._outdated(registry) is not None:
            return None
        return registry.find("checkpoint", self.key, finished=True)

    def checkpoints(self, registry: Registry) -> list[Artifact]:
        """The unfinished checkpoints that the run may resume from, the furthest last.

        Sorted by tokens read, not by steps: a rollback takes the step back and never the data.
        """
        outdated = self._outdated(registry) or set()
        mine = [a for a in self._unfinished(registry) if a.digest not in outdated]
        return sorted(mine, key=reading_order)

    def start_over(self, registry: Registry) -> None:
        """Begin anew (``--fresh``): outdate the checkpoints there are, and unregister them."""
        earlier = self._unfinished(registry)
        outdated = "\n".join(artifact.digest for artifact in earlier)
        replace_durably(self.folder(registry) / FRESH, outdated.encode())
        for artifact in earlier:
            if artifact.tags:
                continue
            try:
                registry.remove(artifact)
            except StillNeeded as error:
                # Something is made from it, or uses it: it stays, and is not resumed from.
                warn(f"kept {artifact.title}: {error}")

    def made_again(self, registry: Registry, artifact: Artifact) -> None:
        """A checkpoint was just published: it is outdated no longer if it was before.

        The new training may come to the same bits as the one before ``--fresh``.
        """
        outdated = self._outdated(registry)
        if outdated and artifact.digest in outdated:
            outdated.remove(artifact.digest)
            replace_durably(self.folder(registry) / FRESH, "\n".join(outdated).encode())

    def end_fresh(self, registry: Registry) -> None:
        """The training that ``--fresh`` began is finished."""
        (self.folder(registry) / FRESH).unlink(missing_ok=True)

    def _outdated(self, registry: Registry) -> set[str] | None:
        """Digests of the checkpoints from before an unfinished ``--fresh``; None if there is none.

        By digest and not by time: a clock may be set back.
        """
        marker = self.folder(registry) / FRESH
        return set(marker.read_text(encoding="utf-8").split()) if marker.exists() else None

    def _unfinished(self, registry: Registry) -> list[Artifact]:
        return registry.list("checkpoint", key=self.key, finished=False)
