"""A checkpoint about to leave: its shape, weights, tokenizer, chat layout and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

from bc2.convert.exporting.target import SAFETENSORS, Dtype
from bc2.convert.stored_tensor import StoredTensor, safetensors_of
from bc2.errors import DataError, RunFailed, UsageError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import holds_adapters
from bc2.model.store import CONFIG, check_shapes, load_config, weight_files
from bc2.registry import Artifact
from bc2.registry.payload import check_file, check_size
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import read_chat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_path


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint whose weights are read while their digests are still taken, by a thread beside.

    What is made of it is published after `check_intact` alone.
    """

    artifact: Artifact
    config: ModelConfig
    weights: Mapping[str, StoredTensor]
    """By bc2's names."""
    tokenizer: Tokenizer
    chat: Chat | None
    generation: GenerationDefaults
    check_intact: Callable[[], None]
    """Waits for the digests. Raises: IntegrityError: a file is not what was published."""

    @classmethod
    @contextmanager
    def open(cls, artifact: Artifact) -> Iterator[SourceModel]:
        """Open a checkpoint, and keep the registry from deleting it.

        Raises:
            UsageError: it is an adapter.
            DataError: it lacks weights or a tokenizer.
            IntegrityError: a file is not what was published.
        """
        if holds_adapters(artifact):
            raise UsageError(
                f"{artifact.title} is an adapter, and a whole model is needed",
                todo=f"fold it into its base first: bc2 merge --adapter {artifact.ref}",
            )
        with artifact.hold():
            names = weight_files(artifact.files())
            if not names:
                raise DataError("it holds no weights", where=artifact.title)
            with _digesting(artifact, names) as check:
                yield cls._read(artifact, names, check)

    @classmethod
    def _read(
        cls, artifact: Artifact, names: Sequence[str], check: Callable[[], None]
    ) -> SourceModel:
        path = tokenizer_path(artifact)
        artifact.file(CONFIG)
        config = load_config(artifact.path)
        weights = {
            name: tensor
            for file in names
            for name, tensor in safetensors_of(artifact.path / file).items()
        }
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        check_shapes(shapes, config, artifact.title)
        tokenizer = Tokenizer.load(path)
        layout = CHAT_FILE in artifact.files()
        chat = read_chat(artifact.path / CHAT_FILE, tokenizer) if layout else None
        generation = GenerationDefaults.of(artifact)
        return cls(artifact, config, weights, tokenizer, chat, generation, check)

    @property
    def dtype(self) -> Dtype:
        """What the weights are stored as; of several types the widest."""
        stored = {tensor.dtype for tensor in self.weights.values()}
        return next((name for name, one in SAFETENSORS.items() if stored == {one}), "fp32")


@contextmanager
def _digesting(artifact: Artifact, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Have files' digests taken by a thread; sizes are looked at before.

    What goes wrong with weights that turn out to be damaged is told as that.
    """
    for name in names:
        check_size(artifact.path, artifact.entry(name))
    ended = Event()

    def go_on(_: int) -> None:
        if ended.is_set():
            raise _Ended

    def check() -> None:
        for name in names:
            check_file(artifact.path, artifact.entry(name), go_on)

    with ThreadPoolExecutor(1) as thread:
        digests = thread.submit(check)
        try:
            yield digests.result
        except (DataError, RunFailed):
            digests.result()
            raise
        finally:
            ended.set()


class _Ended(Exception):
    """Nobody waits for the digests any more."""
