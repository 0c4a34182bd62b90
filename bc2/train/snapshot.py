"""A run at one step: everything that it needs to go on as if it had not been interrupted.

On its way to a checkpoint it is in host memory, each rank's part by itself; from a checkpoint it is
files, of which each rank reads its own part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from bc2.errors import IntegrityError
from bc2.model.model_config import ModelConfig
from bc2.model.store import check_names, expected_shapes, save_config, weight_files
from bc2.parallel.agreement import check_sees, fail_together
from bc2.parallel.file_check import check_files_together, digest_files_together
from bc2.parallel.long_work import Pace, work_together
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, Stored, TensorFile, index_of, write_fragments
from bc2.registry import Artifact
from bc2.registry.manifest import FileEntry
from bc2.tokenizer.tokenizer_files import CHAT_FILE
from bc2.train.engines.base import EngineState
from bc2.train.logs.log_rows import METRICS
from bc2.train.stream import StreamState

TRAINER = "trainer.json"
#: The state of the stream, where it has one.
STREAM = "stream.safetensors"
#: A tensor beside the optimizer's: torch's global generator.
RANDOM = "random_state"


@dataclass(frozen=True)
class TrainerState:
    """The position of a run. `samples` is the whole state of the loader."""

    step: int = 0
    """Optimizer steps made so far, skipped ones included."""
    samples: int = 0
    """Global index of the next sample."""
    recent: list[float] = field(default_factory=list)
    """Losses that the guard remembers."""
    bad: int = 0
    """Bad steps since the last accepted one."""
    rollbacks: int = 0
    """Rollbacks since the last scheduled checkpoint."""


@dataclass(frozen=True)
class ModelState:
    """The state of one model: this rank's part in host memory, or the files of all."""

    weights: HeldTensors | Stored
    optimizer: HeldTensors | Stored
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Of all weights that are saved; None: those that the configuration tells, without adapters."""

    @classmethod
    def open(cls, folder: Path, names: Iterable[str], role: str = "") -> ModelState:
        """The files of a checkpoint.

        Args:
            names: of all its files.
            role: of a model that is not the run's product.
        """
        of_role = prefix(role)
        own = [n.removeprefix(of_role) for n in names if n.startswith(of_role)]
        weights, optimizer = (
            Stored.open([folder / f"{of_role}{name}" for name in found])
            for found in (weight_files(own), _optimizer_files(own))
        )
        return cls(weights, optimizer)

    def files(self, role: str = "") -> dict[str, TensorFile]:
        """The files that it is written to."""
        assert isinstance(self.weights, HeldTensors)
        assert isinstance(self.optimizer, HeldTensors)
        stems = prefix(role) + "model", prefix(role) + "optimizer"
        return {**self.weights.files(stems[0]), **self.optimizer.files(stems[1])}

    def write(self, folder: Path, files: Mapping[str, TensorFile], pace: Pace) -> dict[str, str]:
        """Write what this rank holds; the SHA-256 of the files that it wrote alone."""
        digests: dict[str, str] = {}
        for held in (self.weights, self.optimizer):
            assert isinstance(held, HeldTensors)
            digests |= write_fragments(folder, files, held.fragments, pace.count)
        return digests

    def write_rest(self, folder: Path, config: ModelConfig, role: str = "") -> None:
        """Write what says what the weights are of, and where."""
        assert isinstance(self.weights, HeldTensors)
        expected = expected_shapes(config) if self.shapes is None else self.shapes
        check_names(self.weights.shapes, expected, "state to save")
        weights = self.weights.files(prefix(role) + "model")
        if len(weights) > 1:
            index = prefix(role) + "model.safetensors.index.json"
            (folder / index).write_bytes(index_of(weights))
        save_config(folder, config, prefix(role))


def prefix(role: str) -> str:
    """What the names of a role's files begin with; those of the run's product have none."""
    return f"{role}-" if role else ""


class ModelSnapshot(NamedTuple):
    """What an engine holds of a model, to be saved."""

    held: EngineState
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """See `ModelState.shapes`."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one step."""

    state: TrainerState
    models: Mapping[str, ModelState]
    """Of the trained models by role; "" is the one that the run makes."""
    metrics: bytes
    random: Tensor
    release: Callable[[], None] = lambda: None
    """Says that the tensors are on disk, so that the next snapshot may take their memory."""
    stream: StreamState | None = None

    @classmethod
    def of(
        cls,
        state: TrainerState,
        models: Mapping[str, ModelSnapshot],
        metrics: bytes,
        stream: StreamState | None = None,
        random: Tensor | None = None,
    ) -> Snapshot:
        """A snapshot of what the engines hold, by role as `models`.

        Args:
            random: a `random_state`; None: the one now.
        """

        def release() -> None:
            for one in models.values():
                one.held.release()

        states = {
            role: ModelState(held.weights, held.optimizer, shapes)
            for role, (held, shapes) in models.items()
        }
        return cls(
            state, states, metrics, random_state() if random is None else random, release, stream
        )

    def close(self) -> None:
        """Let go of the files that it was loaded from; nothing can be read any more."""
        for model in self.models.values():
            for source in (model.weights, model.optimizer):
                if isinstance(source, Stored):
                    source.close()

    @property
    def weights(self) -> HeldTensors | Stored:
        """Of the model that the run makes."""
        return self.models[""].weights

    @property
    def optimizer(self) -> HeldTensors | Stored:
        """Of the model that the run makes."""
        return self.models[""].optimizer

    @classmethod
    def load(
        cls, artifact: Artifact, mesh: Mesh | None = None, roles: Iterable[str] = ()
    ) -> Snapshot:
        """Open a checkpoint, each file checked against its digest.

        Args:
            roles: the further trained models of the run.
            mesh: the ranks. Each checks some of the files; all of them call this, while none of
                them is saving.

        Raises:
            IntegrityError: a file is not what was published, or is not a training state; on
                every rank alike.
        """
        ranks = (mesh or Mesh()).side
        check_files_together(artifact, ranks)
        with fail_together(ranks):
            state = _trainer_state(artifact.path / TRAINER)
            names = artifact.files()
            models = {role: ModelState.open(artifact.path, names, role) for role in ("", *roles)}
            metrics = (artifact.path / METRICS).read_bytes()
            stream = read_stream_state(artifact.path / STREAM) if STREAM in names else None
        random = models[""].optimizer.whole(RANDOM)
        return cls(state, models, metrics, random, stream=stream)

    def write(
        self, folder: Path, configs: Mapping[str, ModelConfig], tokenizer: Path, mesh: Mesh
    ) -> list[FileEntry]:
        """Write into an empty directory. Every rank of `mesh` calls it, on a thread of its own.

        Args:
            configs: of `models`.
            tokenizer: its file, copied under its own name, and so is a chat layout beside it.

        Returns:
            Size and digest of the files of tensors, on every rank.

        Raises:
            Exception: what any rank failed with, on every rank.
        """
        files = self._files()
        create = partial(self._create, folder, files, configs, tokenizer)
        work_together(mesh.side, create if mesh.first else lambda pace: None)
        with fail_together(mesh.side):
            check_sees(folder / TRAINER, mesh.side)
        written = work_together(mesh.side, partial(self._write_tensors, folder, files))
        digests = _digests_of_all(_merged(written), folder, files, mesh.side)
        return [FileEntry(path=n, size=files[n].size, sha256=digests[n]) for n in sorted(files)]

    def _files(self) -> dict[str, TensorFile]:
        assert isinstance(self.weights, HeldTensors)
        assert isinstance(self.optimizer, HeldTensors)
        if RANDOM not in self.optimizer:
            self.optimizer.add(RANDOM, TensorShard(tuple(self.random.shape)), 0, self.random)
        return {n: f for role, model in self.models.items() for n, f in model.files(role).items()}

    def _create(
        self, folder: Path, files: Mapping[str, TensorFile], configs: Mapping[str, ModelConfig],
        tokenizer: Path, pace: Pace,
    ) -> None:  # fmt: skip
        """Make the files of tensors, still empty, and write all others."""
        for name, file in files.items():
            # Where a file system cannot set room aside, each of its blocks is written.
            file.create(folder / name)
            pace.count(file.size)
        self._write_rest(folder, configs, tokenizer)

    def _write_tensors(
        self, folder: Path, files: Mapping[str, TensorFile], pace: Pace
    ) -> dict[str, str]:
        """Write what this rank holds; the SHA-256 of the files that it wrote alone."""
        digests: dict[str, str] = {}
        for role, model in self.models.items():
            # By role: two models have tensors of one name.
            own = {name: files[name] for name in model.files(role)}
            digests |= model.write(folder, own, pace)
        return digests

    def _write_rest(
        self, folder: Path, configs: Mapping[str, ModelConfig], tokenizer: Path
    ) -> None:
        for role, model in self.models.items():
            model.write_rest(folder, configs[role], role)
        if self.stream is not None:
            (folder / STREAM).write_bytes(stream_state_bytes(self.stream))
        (folder / TRAINER).write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        (folder / METRICS).write_bytes(self.metrics)
        shutil.copyfile(tokenizer, folder / tokenizer.name)
        chat = tokenizer.with_name(CHAT_FILE)
        if chat.exists():
            shutil.copyfile(chat, folder / CHAT_FILE)


def _digests_of_all(
    found: dict[str, str], folder: Path, files: Mapping[str, TensorFile], ranks: Group
) -> dict[str, str]:
    """The SHA-256 of all files: the ranks share the reading of those that are not in `found`."""
    sizes = {name: files[name].size for name in sorted(files) if name not in found}
    return found | digest_files_together(folder, sizes, ranks) if sizes else found


def _merged(all_ranks: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {name: value for one in all_ranks for name, value in one.items()}


def _optimizer_files(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if n.startswith("optimizer") and n.endswith(".safetensors"))


def _trainer_state(path: Path) -> TrainerState:
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"not a trainer state: {error}", where=TRAINER) from None


def random_state() -> Tensor:
    """The state of torch's global generator on the CPU, for objectives that draw random numbers.

    Those of GPUs are not part of it: nothing that trains may draw there.
    """
    return torch.get_rng_state()


def stream_state_bytes(state: StreamState) -> bytes:
    """A stream's state as a safetensors file: the same state gives the same bytes."""
    values = json.dumps(state.values, sort_keys=True, allow_nan=False)
    # safetensors writes an array's memory as it lies, whatever its strides. Not ascontiguousarray:
    # it gives a scalar a dimension.
    arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()}
    return save(arrays, metadata={"values": values})


def read_stream_state(path: Path) -> StreamState:
    """Raises: IntegrityError if it is none."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return StreamState(json.loads(file.metadata()["values"]), arrays)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"not the state of a stream: {error}", where=path.name) from None
