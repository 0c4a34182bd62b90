"""The models of a server, by the names that clients call them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bc2.align.reward.score_answers import ScoreScale
from bc2.align.reward.score_reader import AnswerReader
from bc2.console import note, warn
from bc2.errors import UsageError
from bc2.free_memory import device_available
from bc2.generate.chosen_model import chosen_to_serve
from bc2.generate.engine import FREE_SHARE, InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.generate.load import LanguageModel, open_model
from bc2.generate.model_settings import own_end_ids, told, turn_settings
from bc2.model.saved_adapter import base_of, holds_adapters
from bc2.serve.lane import Lane
from bc2.serve.reward_lane import RewardLane
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import chat_of
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_name

if TYPE_CHECKING:
    from bc2.model.transformer import Transformer
    from bc2.registry import Artifact, Registry
    from bc2.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with what a request to any needs."""

    name: str
    artifact: Artifact
    tokenizer: Tokenizer
    chat: Chat | None
    """Its layout; None: it has none, and there is no conversation with it."""
    window: int
    """The most tokens that it reads: those of its context, as far as the cache holds them."""
    vocab_size: int
    _token_bytes: dict[int, bytes] = field(default_factory=dict, repr=False, kw_only=True)

    def text_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of generated tokens, in which markers of turns are no text."""
        decode = self.chat or self.tokenizer
        return decode.generated_bytes(ids)

    def plain_text(self, ids: Sequence[int]) -> str:
        """The text of any ids, with U+FFFD for bytes that are not UTF-8."""
        return self.tokenizer.generated_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token's text, in the middle of a text."""
        if (found := self._token_bytes.get(token)) is None:
            found = self._token_bytes[token] = self.text_bytes([token])
        return found

    @cached_property
    def tokenizer_digest(self) -> str:
        """Which tokenizer it has."""
        name = tokenizer_name(self.artifact.files())
        assert name is not None, "a model without a tokenizer was loaded"
        return self.artifact.entry(name).sha256


@dataclass(frozen=True)
class SpeakingModel(ServedModel):
    """A model that says a next token."""

    own: Mapping[str, Any]
    """Its own sampling settings."""
    chat_own: Mapping[str, Any]
    """Those of its turns in a conversation."""
    ends: tuple[int, ...]
    """The tokens that end a continuation of plain text."""
    chat_ends: tuple[int, ...]
    """The tokens that end an answer of a conversation."""
    lane: Lane


@dataclass(frozen=True)
class ServedRewardModel(ServedModel):
    """A model that scores answers."""

    reader: AnswerReader
    scale: ScoreScale | None
    """Of its scores; None: nothing was held out when it was trained."""
    lane: RewardLane


class ServedModels:
    """What a server serves; at least one model."""

    def __init__(self, models: Sequence[SpeakingModel | ServedRewardModel]):
        self.by_name = {model.name: model for model in models}

    def __iter__(self) -> Iterator[SpeakingModel | ServedRewardModel]:
        return iter(self.by_name.values())

    @cached_property
    def any_tokenizer(self) -> ServedModel | None:
        """A model that stands for all where the tokenizer alone is asked for; None if they differ.

        Requests for it need not name a model.
        """
        digests = {model.tokenizer_digest for model in self}
        return next(iter(self)) if len(digests) == 1 else None


def named_artifacts(registry: Registry, refs: Sequence[str]) -> dict[str, Artifact]:
    """The models of refs by the names that they are to be served by, each its own or ``NAME=REF``.

    Args:
        refs: none: the newest model, which is said.

    Raises:
        UsageError: two have one name, or a name cannot be printed.
        RefError: see `chosen_to_serve`.
    """
    found: dict[str, Artifact] = {}
    for ref in refs or (None,):
        name, equals, rest = (ref or "").partition("=")
        given = bool(equals) and not name.startswith((".", "/", "~"))
        artifact = chosen_to_serve(registry, rest if given else ref)
        name = name if given else artifact.name
        if not name or name in found:
            what = f"two models would be served as {name!r}" if name else "a model without a name"
            raise UsageError(what, where=ref, todo="give each a name of its own: NAME=REF")
        if not name.isprintable():
            raise UsageError(f"the name {name!r} cannot be printed", todo="give another NAME=REF")
        found[name] = artifact
    return found


@contextmanager
def open_models(
    artifacts: Mapping[str, Artifact],
    device: torch.device,
    dtype: torch.dtype,
    config: EngineConfig,
) -> Iterator[ServedModels]:
    """Load models, each once: adapters stand beside the weights of a base that they share.

    Args:
        config: `cache_bytes`, or what is free, is shared out evenly among models that speak.

    Raises:
        DataError: a model, tokenizer or layout cannot be read.
        RefError: the base of an adapter is not registered.
        IntegrityError: a file is not what was published.
        UsageError: the cache is too small.
    """
    with ExitStack() as held:
        bases: dict[str, Transformer] = {}
        loaded: dict[str, LanguageModel] = {}
        for name, artifact in artifacts.items():
            note(f"loading {artifact.title} as {name!r}")
            base = base_of(artifact) if holds_adapters(artifact) else artifact
            if base.digest not in bases:
                one = held.enter_context(open_model(base, device, dtype))
                bases[base.digest] = one.model
                if base is artifact:
                    loaded[name] = one
                    continue
            loaded[name] = held.enter_context(
                open_model(artifact, device, dtype, beside=bases[base.digest])
            )
        # After all weights, so that what is free is what they leave.
        speaking = sum(not _scores(one) for one in loaded.values())
        config = _shared_out(config, speaking, device)
        yield ServedModels(
            [
                _reward_model(name, one, config) if _scores(one) else _served(name, one, config)
                for name, one in loaded.items()
            ]
        )


def _scores(loaded: LanguageModel) -> bool:
    """Whether it is a reward model."""
    return loaded.model.config.head == "scalar"


def _shared_out(config: EngineConfig, models: int, device: torch.device) -> EngineConfig:
    if models <= 1:
        return config
    whole = config.cache_bytes or int(device_available(device) * FREE_SHARE)
    return config.model_copy(update={"cache_bytes": max(1, whole // models)})


def _served(name: str, loaded: LanguageModel, config: EngineConfig) -> SpeakingModel:
    artifact, tokenizer = loaded.artifact, loaded.tokenizer
    own = GenerationDefaults.of(artifact)
    chat = chat_of(artifact, tokenizer) if CHAT_FILE in artifact.files() else None
    ends = own_end_ids(tokenizer, None, own, artifact)
    chat_ends = own_end_ids(tokenizer, chat, own, artifact)
    turns = own.sampling() if chat is None else turn_settings(own, chat)
    if said := told(turns, own, chat_ends):
        note(f"settings of {name!r} where a request gives none: {said}")
    decode = (chat or tokenizer).generated_bytes
    engine = InferenceEngine(loaded.model, config, eos_id=tokenizer.eos_id, decode_bytes=decode)
    shape = loaded.model.config
    window = min(shape.context_length, engine.cache_tokens)
    if window < shape.context_length:
        warn(
            f"the cache of {name!r} holds {window:,} tokens, and the model reads "
            f"{shape.context_length:,}: longer texts are refused; --cache-memory gives it more"
        )
    return SpeakingModel(
        name, artifact, tokenizer, chat, window, shape.vocab_size, own.sampling(), turns, ends,
        chat_ends, Lane(engine),
    )  # fmt: skip


def _reward_model(name: str, loaded: LanguageModel, config: EngineConfig) -> ServedRewardModel:
    artifact, shape = loaded.artifact, loaded.model.config
    reader, scale = AnswerReader.of(artifact), ScoreScale.of(artifact)
    if scale is None:
        note(f"{name!r} keeps no mean of its scores: standard scores are null")
    return ServedRewardModel(
        name, artifact, loaded.tokenizer, reader.chat, reader.window, shape.vocab_size, reader,
        scale, RewardLane(loaded.model, config.most_running),
    )  # fmt: skip
