"""What all routes of a server share: its models, their queues, and the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from bc2.console import warn
from bc2.errors import Bc2Error, ResourceError, out_of_memory
from bc2.serve.admission import Admission
from bc2.serve.engine_thread import EngineThread
from bc2.serve.metrics import Metrics
from bc2.serve.protocol.api_error import (
    ApiError,
    api_error_of,
    bad_value,
    context_too_long,
    failed,
    model_not_found,
    wrong_kind,
)
from bc2.serve.protocol.messages import Messages
from bc2.serve.protocol.texts import TextOrIds
from bc2.serve.request_log import RequestLog
from bc2.serve.serve_config import ServeConfig
from bc2.serve.served_models import (
    ServedModel,
    ServedModels,
    ServedRewardModel,
    SpeakingModel,
)
from bc2.serve.ticket import Inbox
from bc2.tokenizer.chat import Chat

T = TypeVar("T")

#: Characters of a text to encode, or tokens of a reply, that are done at once; more in a thread.
_SHORT = 2048

#: The most log-probabilities that a request may ask for: half a gigabyte while it is answered.
MOST_LOG_PROBS = 1 << 22

#: Characters of a text, for each token of the window, that are looked at first.
_CHARACTERS = 8

#: How many tokens the beginning of a text may have more than the same characters inside it.
_MARGIN = 64


class Service:
    """The parts of a running server.

    Args:
        died: see `EngineThread`.
    """

    def __init__(
        self, models: ServedModels, config: ServeConfig, died: Callable[[BaseException], None]
    ):
        self.models = models
        self.config = config
        self.draining = False
        speaking = {one.name: one.lane for one in models if isinstance(one, SpeakingModel)}
        scoring = {one.name: one.lane for one in models if isinstance(one, ServedRewardModel)}
        self.metrics = Metrics(speaking, scoring)
        self.log = RequestLog(config, self.metrics)
        self.thread = EngineThread({**speaking, **scoring}, died)
        self._admissions = {
            model.name: Admission(model.lane.most_running, config.max_waiting) for model in models
        }
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="bc2-aside")

    def close(self) -> None:
        """Do nothing more aside."""
        self._aside.shutdown(wait=False, cancel_futures=True)

    @property
    def healthy(self) -> bool:
        """Whether no model failed in its last forward passes."""
        return all(model.lane.failures < 2 for model in self.models)

    def told(self, error: Exception) -> ApiError:
        """What a client is told of an exception; what is no fault of the client's is logged."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, Bc2Error):
            found = api_error_of(error)
            if found.status >= 500:
                warn(f"a request failed: {error}")
            return found
        if out_of_memory(error):
            return self.told(ResourceError("out of memory"))
        self.log.defect(error)
        return failed()

    # -------------------------------------------------------------------------------- models

    def model(self, name: str) -> SpeakingModel | ServedRewardModel:
        """A model by its name. Raises: ApiError if it is not served."""
        if name not in self.models.by_name:
            raise model_not_found(name, self.models.by_name)
        return self.models.by_name[name]

    def speaking(self, name: str) -> SpeakingModel:
        """A model that says a next token. Raises: ApiError if it is not served, or scores."""
        model = self.model(name)
        if not isinstance(model, SpeakingModel):
            raise wrong_kind(
                f"{name!r} is a reward model, which says no next token: ask /v1/rewards for the "
                "scores of answers, or name another model"
            )
        return model

    def reward_model(self, name: str) -> ServedRewardModel:
        """A model that scores answers. Raises: ApiError if it is not served, or speaks."""
        model = self.model(name)
        if not isinstance(model, ServedRewardModel):
            raise wrong_kind(f"{name!r} is no reward model, and gives answers no score: name one")
        return model

    def tokenizer_model(self, name: str | None) -> ServedModel:
        """The model whose tokenizer is asked for; any where all have the same one.

        Raises:
            ApiError: it is not served, or none is named and they differ.
        """
        if name is not None:
            return self.model(name)
        if self.models.any_tokenizer is None:
            names = ", ".join(self.models.by_name)
            raise bad_value(
                "model", f"the models have different tokenizers: name one of {names}",
                "missing_required_parameter",
            )  # fmt: skip
        return self.models.any_tokenizer

    # --------------------------------------------------------------------------------- texts

    async def text_ids(self, model: ServedModel, text: TextOrIds, param: str) -> list[int]:
        """The ids of a prompt, as the model was trained to read it.

        Raises:
            ApiError: it is too long, or has ids that the model has not got.
        """
        if not isinstance(text, str):
            check_ids(model, text, param)
            return list(text)
        ids = await self.encoded(lambda: _whole(model, text, param), len(text), param)
        if not ids:
            raise bad_value(param, f"`{param}` has no tokens; begin with some text")
        return ids

    async def continuation_ids(self, model: ServedModel, text: TextOrIds, param: str) -> list[int]:
        """The ids of a text that follows another, encoded by itself.

        Raises:
            ApiError: see `text_ids`.
        """
        if not isinstance(text, str):
            check_ids(model, text, param)
            return list(text)

        def encode() -> list[int]:
            check_length(model, text, param)
            return model.tokenizer.encode(text)

        return await self.encoded(encode, len(text), param)

    async def chat_ids(self, model: ServedModel, messages: Messages) -> list[int]:
        """The ids of a conversation that the model is to answer.

        Raises:
            ApiError: the model has no layout, or it has no place for the conversation, or it is
                too long.
        """
        chat = layout_of(model)

        def render() -> list[int]:
            for number, message in enumerate(messages):
                check_length(model, message["content"], f"messages[{number}].content")
            return chat.prompt(messages)

        ids = await self.encoded(render, sum(len(one["content"]) for one in messages), "messages")
        if len(ids) > model.window:
            raise context_too_long(len(ids), model.window, "messages")
        return ids

    async def encoded(self, encode: Callable[[], T], size: int, param: str) -> T:
        """What encodes a text of some characters, done `aside`."""
        try:
            return await self.aside(encode, size)
        except Bc2Error as error:
            raise api_error_of(error, param) from None

    async def aside(self, work: Callable[[], T], size: int) -> T:
        """Work that takes as long as its size, without stopping the event loop for long."""
        if size <= _SHORT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    # ---------------------------------------------------------------------------------- work

    @contextmanager
    def admitted(self, model: ServedModel, sequences: int, param: str) -> Iterator[None]:
        """Count so many sequences of a model as running or waiting; see `Admission.taken`."""
        with self._admissions[model.name].taken(sequences, param):
            yield

    @contextmanager
    def working(self, model: ServedModel, inbox: Inbox) -> Iterator[Inbox]:
        """Have an engine work on the tickets of an inbox; on none of them after the block."""
        for ticket in inbox.tickets:
            self.thread.submit(model.name, ticket)
        try:
            yield inbox
        finally:
            for ticket in inbox.tickets:
                self.thread.cancel(ticket)


def layout_of(model: ServedModel) -> Chat:
    """Its chat layout. Raises: ApiError if it has none."""
    if model.chat is None:
        raise ApiError(
            400, f"{model.name!r} has no chat layout: it was not trained with turns; ask "
            "/v1/completions to continue a text",
            param="model", code="no_chat_layout",
        )  # fmt: skip
    return model.chat


def check_ids(
    model: ServedModel, ids: Sequence[int], param: str, *, any_length: bool = False
) -> None:
    """See that a model has some token ids, and reads as many.

    Args:
        any_length: it need not read them.

    Raises:
        ApiError: it has not, or does not.
    """
    wrong = next((token for token in ids if token >= model.vocab_size), None)
    if wrong is not None:
        raise bad_value(
            param, f"`{param}` holds the token {wrong}, and {model.name!r} has {model.vocab_size:,}"
        )
    if len(ids) > model.window and not any_length:
        raise context_too_long(len(ids), model.window, param)


def check_log_probs(tokens: int, top_count: int | None, param: str) -> None:
    """See that a request asks for no more log-probabilities than memory has room for.

    Args:
        tokens: the most that it can have log-probabilities of.
        top_count: alternatives of each of them; None: it asks for none.

    Raises:
        ApiError: it asks for more.
    """
    asked = 0 if top_count is None else tokens * (top_count + 1)
    if asked > MOST_LOG_PROBS:
        raise bad_value(
            param, f"the request asks for up to {asked:,} log-probabilities, and the server makes "
            f"{MOST_LOG_PROBS:,} at once; ask for fewer, or send several requests",
        )  # fmt: skip


def _whole(model: ServedModel, text: str, param: str) -> list[int]:
    check_length(model, text, param)
    ids = model.tokenizer.encode_whole(text)
    if len(ids) > model.window:
        raise context_too_long(len(ids), model.window, param)
    return ids


def check_length(model: ServedModel, text: str, param: str) -> None:
    """Refuse a text by its beginning, without encoding all of it, if that is too long already."""
    size = _CHARACTERS * model.window
    if len(text) > 2 * size:
        tokens = len(model.tokenizer.encode(text[:size])) - _MARGIN
        if tokens > model.window:
            raise context_too_long(tokens, model.window, param, at_least=True)
