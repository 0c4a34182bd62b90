"""The model that answers, loaded when the first prompt is unanswered and kept for all suites."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from bc2.errors import DataError
from bc2.generate.engine_config import EngineConfig
from bc2.registry import Artifact

if TYPE_CHECKING:
    import torch

    from bc2.generate.engine import InferenceEngine
    from bc2.generate.generation_defaults import GenerationDefaults
    from bc2.model.model_config import ModelConfig
    from bc2.model.transformer import Transformer
    from bc2.tokenizer.chat import Chat
    from bc2.tokenizer.tokenizer import Tokenizer
    from bc2.train.precision import Precision


@dataclass
class ModelHolder:
    """A checkpoint, its device and the engine over it; close it when all is answered."""

    artifact: Artifact
    device: torch.device
    precision: Precision
    config: EngineConfig = field(default_factory=EngineConfig)
    wanted_device: str = "auto"
    """As it was asked for: each rank takes its own."""
    chat: Chat | None = None
    """The layout that it answers in; None: it continues texts. Set by `use_layout`."""
    _held: ExitStack = field(default_factory=ExitStack)
    _told_seconds: float = 0.0

    @classmethod
    def on(
        cls, artifact: Artifact, device: str, precision: Precision, config: EngineConfig
    ) -> ModelHolder:
        """On a device by its name; of several ranks on a machine each takes another GPU.

        Raises:
            UsageError: there is no such device.
        """
        from bc2.train.device import rank_device

        return cls(artifact, rank_device(device), precision, config, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        from bc2.train.device import DTYPES

        return DTYPES[self.precision]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, which needs no model in memory.

        Raises:
            DataError: it is not the model's.
            IntegrityError: a file is not what was published.
            RefError: the checkpoint has none.
        """
        from bc2.generate.load import check_files
        from bc2.tokenizer.tokenizer import Tokenizer
        from bc2.tokenizer.tokenizer_files import tokenizer_path

        check_files(self.artifact)
        tokenizer = Tokenizer.load(tokenizer_path(self.artifact))
        rows = self.shape.vocab_size
        if tokenizer.vocab_size > rows:
            raise DataError(
                f"the tokenizer of {self.artifact.title} has {tokenizer.vocab_size:,} pieces and "
                f"its model {rows:,} tokens: it is another model's",
                where=str(self.artifact.path),
                todo="import the checkpoint again with the tokenizer that it was trained with",
            )
        return tokenizer

    def use_layout(self) -> None:
        """Answer in the checkpoint's chat layout; before anything is answered.

        Raises:
            DataError: it has none.
            IntegrityError: its file is not what was published.
        """
        from bc2.tokenizer.chat_file import chat_of

        self.chat = chat_of(self.artifact, self.tokenizer)

    @cached_property
    def defaults(self) -> GenerationDefaults:
        """The checkpoint's own settings of generation."""
        from bc2.generate.generation_defaults import GenerationDefaults

        return GenerationDefaults.of(self.artifact)

    @cached_property
    def shape(self) -> ModelConfig:
        """The model's configuration."""
        from bc2.model.store import CONFIG, load_config

        self.artifact.file(CONFIG)
        return load_config(self.artifact.path)

    @property
    def window(self) -> int:
        """Tokens of the model's context."""
        return self.shape.context_length

    @cached_property
    def model(self) -> Transformer:
        """The model on its device."""
        from bc2.generate.load import open_model

        opened = open_model(self.artifact, self.device, self.dtype)
        return self._held.enter_context(opened).model

    @cached_property
    def engine(self) -> InferenceEngine:
        """The engine over the model."""
        from bc2.generate.engine import InferenceEngine

        tokenizer = self.tokenizer
        return InferenceEngine(
            self.model,
            self.config,
            eos_id=tokenizer.eos_id,
            decode_bytes=(self.chat or tokenizer).generated_bytes,
        )

    def seconds_since_last(self) -> float:
        """Seconds in the model since this was asked before: passes, and choosing tokens."""
        stats = self.engine.stats
        total = stats.forward_s + stats.sample_s + stats.settle_s
        before, self._told_seconds = self._told_seconds, total
        return total - before

    def close(self) -> None:
        """Let go of the checkpoint's files."""
        self._held.close()
