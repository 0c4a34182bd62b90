"""A model that is ready to talk: loaded, its engine open for as long as the conversation lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bc2.chat.dialogue import Dialogue
from bc2.chat.shown import resume
from bc2.chat.speaker import Speaker
from bc2.chat.talk import Talk
from bc2.errors import UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.generate.load import open_model
from bc2.generate.model_settings import chat_settings, own_end_ids
from bc2.tokenizer.chat_file import chat_of

if TYPE_CHECKING:
    import torch

    from bc2.chat.saved import Saved
    from bc2.generate.engine_config import EngineConfig
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.registry import Artifact


@dataclass(frozen=True)
class Wishes:
    """What a person asks of a conversation."""

    settings: SamplingConfig
    """With stop texts; the rest is as the model says, where it is not in `given`."""
    given: Mapping[str, Any]
    """Settings by name that go before those of the model, and of a file."""
    stop_ids: Sequence[int] = ()
    """Beside those that end an answer of the model."""
    system: str | None = None
    saved: Saved | None = None
    """A conversation to go on with."""


@contextmanager
def open_talk(
    artifact: Artifact,
    wishes: Wishes,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Talk]:
    """Load a model to talk with.

    Raises:
        DataError: the model or its layout is damaged, or has no place for what is asked.
        IntegrityError: a file of it is not what was published.
        RefError: the base of an adapter is not registered.
        UsageError: an option is impossible for this model.
    """
    own = GenerationDefaults.of(artifact)
    with open_model(artifact, device, dtype) as loaded:
        tokenizer, window = loaded.tokenizer, loaded.model.config.context_length
        layout = chat_of(artifact, tokenizer)
        _check_ids(wishes.stop_ids, tokenizer.vocab_size)
        ends = dict.fromkeys([*own_end_ids(tokenizer, layout, own, artifact), *wishes.stop_ids])
        values = {**chat_settings(own, layout, window), **wishes.given, "stop_ids": tuple(ends)}
        settings = wishes.settings.model_copy(update=values)
        engine = InferenceEngine(
            loaded.model, config, eos_id=tokenizer.eos_id, decode_bytes=layout.generated_bytes
        )
        with engine.open() as session:
            speaker = Speaker(session, layout.generated_bytes)
            dialogue = Dialogue(layout, window, wishes.system)
            talk = Talk(dialogue, speaker, settings, artifact)
            if wishes.saved is not None:
                resume(talk, wishes.saved)
                talk.set_params(wishes.given)
                if wishes.system is not None:
                    talk.dialogue.set_system(wishes.system)
            yield talk


def _check_ids(stop_ids: Sequence[int], pieces: int) -> None:
    wrong = next((token for token in stop_ids if not 0 <= token < pieces), None)
    if wrong is not None:
        raise UsageError(f"stop id {wrong} is outside the vocabulary of {pieces:,} pieces")
