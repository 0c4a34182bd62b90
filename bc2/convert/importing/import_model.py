"""A model of another family, from a folder or the hub, registered as one of ours.

Two artifacts are made: its tokenizer, and a checkpoint with its weights in bc2's names, its
tokenizer, chat layout and settings. Nothing of the source is run, and no tensor is held as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.console import progress, warn
from bc2.convert.families import Family, family_of
from bc2.convert.hf_config import HfConfig
from bc2.convert.importing.hub import HubModel
from bc2.convert.importing.model_folder import CONFIG, ModelFolder
from bc2.convert.importing.speech import FILES, Speech, read_speech
from bc2.convert.importing.stored_tensors import open_tensors
from bc2.convert.importing.weight_plan import check_tied, plan_weights
from bc2.convert.importing.write_weights import write_weights
from bc2.convert.stored_tensor import StoredTensor
from bc2.errors import Bc2Error, DataError, IntegrityError, UsageError, from_os_error
from bc2.files import sha256_file, write_durably
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_config
from bc2.registry import Artifact, Draft, Registry, Role, stage_key
from bc2.registry.draft import check_name
from bc2.registry.manifest import FileEntry
from bc2.registry.refs import HUB, HUB_NAMES

#: Raised when the same files would give another artifact.
_VERSION = 1


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    folder: ModelFolder
    title: str
    """For people, and recorded."""
    name: str
    """What it is called if nobody says."""
    hub_names: tuple[str, ...] = ()
    """On the hub, by its commit first: the same commit is the same model."""

    @classmethod
    def of(cls, source: str | Path) -> Source:
        """A folder, or ``hf://OWNER/NAME@REVISION``, which is fetched.

        Raises:
            DataError: there is none.
            UsageError: it is no name of a model on the hub.
        """
        if not str(source).startswith(HUB):
            path = Path(source)
            return cls(ModelFolder(path), str(path.absolute()), _name_of(path.absolute()))
        hub = HubModel.parse(str(source))
        folder, commit = hub.fetch()
        names = hub.names(commit)
        return cls(ModelFolder(folder), names[0], hub.name, names)

    def identity(self, paths: list[Path]) -> dict[str, str]:
        """What the model is made of, for its key: a commit, or digests of the files."""
        if self.hub_names:
            return {"hub": self.title}
        total = sum(path.stat().st_size for path in paths)
        with progress("reading", total, "bytes") as seen:
            return {path.name: sha256_file(path, seen) for path in paths}


def _name_of(path: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache the model's."""
    cached = re.fullmatch(r"models--.*--(.+)", path.parent.parent.name)
    return cached[1] if cached and path.parent.name == "snapshots" else path.name


def import_model(
    registry: Registry,
    source: str | Path,
    *,
    name: str | None = None,
    role: Role | None = None,
    chat_layout: str | None = None,
) -> Artifact:
    """Register a model as a checkpoint, and its tokenizer beside it; what is there is found.

    Args:
        source: a folder in the layout of Hugging Face, or ``hf://OWNER/NAME@REVISION``.
        name: of both artifacts; that of the source if None.
        role: chat for a model with a chat layout if None, base for others.
        chat_layout: by its name, or ``none``; as the source says if None.

    Raises:
        DataError: it is no such model, a file is missing or broken, or bc2 does not compute it.
        UsageError: the name cannot be.
        ResourceError: the disk is full. Nothing is left behind.
    """
    found = Source.of(source)
    name = _checked_name(found.name if name is None else name, given=name is not None)
    registry.sweep()  # an import that was killed may have left as much as the model has
    try:
        read = _Read.of(found, chat_layout)
        with read.tokenizer(registry, name) as tokenizer:
            return read.checkpoint(registry, name, role, tokenizer)
    except OSError as error:
        raise from_os_error(error, f"importing {found.title}") from error


def _checked_name(name: str, *, given: bool) -> str:
    try:
        return check_name(name)
    except UsageError as error:
        if not given:
            error.todo = "give one with --name"
        raise


@dataclass(frozen=True)
class _Read:
    """Everything that is known of a model before its weights are read."""

    source: Source
    family: Family
    config: ModelConfig
    weights: Mapping[str, list[StoredTensor]]
    speech: Speech
    layout: str | None

    @classmethod
    def of(cls, source: Source, layout: str | None) -> _Read:
        folder = source.folder
        folder.check_is_model()
        config = HfConfig(folder.json(CONFIG), str(folder.path / CONFIG))
        if config.data.get("quantization_config"):
            raise DataError(
                "the weights are quantised",
                where=config.where,
                todo="import the model that they were made from",
            )
        family = family_of(config)
        shape = family.model(config)
        for key, value in config.unread().items():
            warn(f"{key} = {value!r} in config.json is unknown, and has no effect here")
        speech = read_speech(folder, shape, family.name, layout)
        stored = open_tensors(folder)
        weights = plan_weights(stored, family, shape, str(folder.path))
        check_tied(stored, shape, str(folder.path))
        return cls(source, family, shape, weights, speech, layout)

    @property
    def facts(self) -> dict[str, Any]:
        facts = {"imported_from": self.source.title, "family": self.family.name}
        return {**facts, HUB_NAMES: list(self.source.hub_names)} if self.source.hub_names else facts

    @contextmanager
    def tokenizer(self, registry: Registry, name: str) -> Iterator[Artifact]:
        """The tokenizer as an artifact of its own, which token shards are made with.

        One that was made is taken back if what follows fails.
        """
        files = self.speech.tokenizer_files
        key = stage_key("tokenizer", _VERSION, {"imported": _digests(files), "name": name}, ())
        known = _whole(registry, registry.find("tokenizer", key))
        if known is not None:
            yield known
            return
        facts = {**self.facts, "vocab_size": self.speech.tokenizer.vocab_size}
        if lost := self.speech.tokenizer.lost:
            facts["not_given_back"] = list(lost)
        with registry.stage(Draft("tokenizer", name, key, facts=facts)) as staged:
            for file, data in files.items():
                write_durably(staged.path / file, data)
            made = staged.publish()
        try:
            yield made
        except BaseException:
            with suppress(Bc2Error):  # somebody else may have begun to use it
                registry.remove(made)
            raise

    def checkpoint(
        self, registry: Registry, name: str, role: Role | None, tokenizer: Artifact
    ) -> Artifact:
        role = self._role(role)
        identity = {"imported": self.source.identity(self._paths()), "name": name, "role": role,
                    "layout": self.layout}  # fmt: skip
        key = stage_key("checkpoint", _VERSION, identity, [tokenizer.digest])
        known = _whole(registry, registry.find("checkpoint", key))
        if known is not None:
            return known
        facts = {**self.facts, "params": self.config.num_params()}
        draft = Draft("checkpoint", name, key, (tokenizer.digest,), facts=facts, role=role)
        with registry.stage(draft) as staged:
            save_config(staged.path, self.config)
            for file, data in self.speech.files.items():
                write_durably(staged.path / file, data)
            total = sum(part.size for parts in self.weights.values() for part in parts)
            with progress(f"importing {name}", total, "bytes") as seen:
                digests = write_weights(staged.path, self.weights, seen)
            known_files = [
                FileEntry(path=file, size=(staged.path / file).stat().st_size, sha256=digest)
                for file, digest in digests.items()
            ]
            return staged.publish(known=known_files)

    def _role(self, asked: Role | None) -> Role:
        """Raises: UsageError: a model that scores is to be one that speaks, or the reverse."""
        scores = self.config.head != "language"
        if asked is None:
            return "reward" if scores else "base" if self.speech.chat is None else "chat"
        if (asked == "reward") is not scores:
            does = "scores answers" if scores else "says next tokens"
            raise UsageError(
                f"{self.source.title} {does}, and is no {asked} model",
                where="--role",
                todo="leave it out: the role follows from the model",
            )
        return asked

    def _paths(self) -> list[Path]:
        """The files that the model is made of."""
        folder = self.source.folder
        weights = {part.path for parts in self.weights.values() for part in parts}
        texts = [folder.file(name) for name in (CONFIG, *FILES) if folder.has(name)]
        return [*texts, *sorted(weights)]


def _whole(registry: Registry, known: Artifact | None) -> Artifact | None:
    """What was imported before, unless it is damaged: then it is made again in its place."""
    if known is None:
        return None
    try:
        registry.verify(known)
    except IntegrityError as error:
        warn(f"{error.what} ({error.where}): importing it again")
        return None
    return known


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    import hashlib

    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
