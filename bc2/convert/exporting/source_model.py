"""A checkpoint about to leave: its shape, weights, tokenizer, chat layout and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bc2.convert.exporting.target import SAFETENSORS, Dtype
from bc2.convert.stored_tensor import StoredTensor, safetensors_of
from bc2.errors import DataError, UsageError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import holds_adapters
from bc2.model.store import CONFIG, check_shapes, load_config, weight_files
from bc2.parallel.file_check import check_files_together
from bc2.parallel.mesh import Mesh
from bc2.registry import Artifact
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import read_chat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_path


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint whose files were found intact."""

    artifact: Artifact
    config: ModelConfig
    weights: Mapping[str, StoredTensor]
    """By bc2's names."""
    tokenizer: Tokenizer
    chat: Chat | None
    generation: GenerationDefaults

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
            path = tokenizer_path(artifact)
            check_files_together(artifact, Mesh().side, only={CONFIG, *names})
            config = load_config(artifact.path)
            weights = {
                name: tensor
                for file in names
                for name, tensor in safetensors_of(artifact.path / file).items()
            }
            shapes = {name: tensor.shape for name, tensor in weights.items()}
            check_shapes(shapes, config, artifact.title)
            tokenizer = Tokenizer.load(path)
            chat = None
            if CHAT_FILE in artifact.files():
                chat = read_chat(artifact.path / CHAT_FILE, tokenizer)
            generation = GenerationDefaults.of(artifact)
            yield cls(artifact, config, weights, tokenizer, chat, generation)

    @property
    def dtype(self) -> Dtype:
        """What the weights are stored as; of several types the widest."""
        stored = {tensor.dtype for tensor in self.weights.values()}
        return next((name for name, one in SAFETENSORS.items() if stored == {one}), "fp32")
