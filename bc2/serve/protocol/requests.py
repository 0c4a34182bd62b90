"""The bodies of requests: what they may ask for, and what is wrong to ask."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from bc2.generate.sampling_config import MOST_LOGPROBS
from bc2.serve.protocol.api_error import bad_value
from bc2.serve.protocol.body import Body
from bc2.serve.protocol.messages import Messages, conversations_of, messages_of
from bc2.serve.protocol.texts import TextOrIds, ids_of, texts_of

#: The most continuations of one prompt, as OpenAI has it.
MOST_CHOICES = 128

#: The most texts that end an answer, and the most characters of one.
MOST_STOPS, LONGEST_STOP = 16, 1000

#: The most tokens that end an answer beside the model's own.
MOST_STOP_IDS = 1000

#: Whole numbers that fit wherever they are put.
_INT_LIMIT = (1 << 31) - 1

#: OpenAI's answer to a completion that does not say how long.
COMPLETION_TOKENS = 16

_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_Tokens = Annotated[int, Field(gt=0, le=_INT_LIMIT)]


#: A list of what may be very many; the first that is wrong is enough.
_Strings = Annotated[list[str], Field(fail_fast=True)]
_Ids = Annotated[list[int], Field(fail_fast=True)]


class StreamOptions(Body):
    """What a stream says beside the answer."""

    include_usage: bool = False
    """End with a chunk that has the tokens of the request."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


def _stream_options(value: Any) -> Any:
    return StreamOptions.asked(value, "stream_options.") if isinstance(value, dict) else value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class SamplingBody(Body):
    """What completions and chats have in common."""

    model: _Name
    """The name of a served model."""

    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    """Answers to each prompt."""

    stop: Annotated[_Strings, BeforeValidator(_one_or_more)] = Field(default_factory=list)
    """Texts that end an answer; they are not part of it."""

    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Of the random numbers; None: a fresh one."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """None, here and below: what the model brings along, else OpenAI's default."""

    top_p: float | None = Field(default=None, gt=0, le=1)

    top_k: int | None = Field(default=None, ge=0, le=_INT_LIMIT)
    """Ours: the likeliest tokens that are kept; 0 keeps all."""

    min_p: float | None = Field(default=None, ge=0, le=1)
    """Ours: the least probability of a kept token, as a share of the likeliest one's."""

    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    """Ours: what logits of tokens that were there are divided by."""

    stop_token_ids: _Ids = Field(default_factory=list)
    """Ours: tokens that end an answer, beside the model's own."""

    ignore_eos: bool = False
    """Ours: the model's own end tokens do not end an answer."""

    return_token_ids: bool = False
    """Ours: the ids of prompt and answer in the reply."""

    stream: bool = False
    """Send the answer as it grows."""

    stream_options: Annotated[StreamOptions | None, BeforeValidator(_stream_options)] = None
    """Only with `stream`."""

    user: str | None = None
    """Without effect."""

    @model_validator(mode="after")
    def _check(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise bad_value("stream_options", "`stream_options` needs `stream: true`")
        if len(self.stop) > MOST_STOPS:
            raise bad_value("stop", f"`stop` has {len(self.stop):,} texts, at most {MOST_STOPS}")
        for text in self.stop:
            if not 0 < len(text) <= LONGEST_STOP:
                said = f"has more than {LONGEST_STOP:,} characters" if text else "is empty"
                raise bad_value("stop", f"a text of `stop` {said}")
        if len(self.stop_token_ids) > MOST_STOP_IDS:
            raise bad_value("stop_token_ids", f"at most {MOST_STOP_IDS:,} tokens end an answer")
        ids_of(self.stop_token_ids, "stop_token_ids")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    @abstractmethod
    def top_count(self) -> int | None:
        """Alternatives of each token whose log-probabilities are asked for; None: none at all."""


#: What changes nothing, of fields that OpenAI has for completions and for chats.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": (),
    "presence_penalty": (0,),
}


class CompletionRequest(SamplingBody):
    """``POST /v1/completions``."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {**_UNSUPPORTED, "suffix": ()}

    prompt: Annotated[list[TextOrIds], BeforeValidator(partial(texts_of, param="prompt"))]
    """The texts to continue, all as texts or all as ids."""

    max_tokens: int = Field(default=COMPLETION_TOKENS, ge=0, le=_INT_LIMIT)
    """Most tokens of an answer; 0 with `echo` only scores the prompt."""

    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """Log-probabilities of the tokens, and of this many likeliest in place of each."""

    echo: bool = False
    """Begin the answer with the prompt."""

    best_of: int | None = Field(default=None, ge=1)
    """1, or `n`: both ask for nothing."""

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if not self.max_tokens and not self.echo:
            raise bad_value("max_tokens", "`max_tokens` 0 asks for nothing without `echo`")
        if self.best_of not in (None, 1, self.n):
            message = "`best_of` is not supported but as 1 or as `n`; leave it out"
            raise bad_value("best_of", message, "unsupported_value")
        return self

    @property
    def top_count(self) -> int | None:
        return self.logprobs


class ChatRequest(SamplingBody):
    """``POST /v1/chat/completions``."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_UNSUPPORTED,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": (),
        "modalities": (["text"],),
        "moderation": (),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory",),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[Messages, BeforeValidator(partial(messages_of, answered=True))]
    """The conversation; the assistant speaks next."""

    max_tokens: _Tokens | None = None
    """Most tokens of an answer; None: what the model's window has room for."""

    max_completion_tokens: _Tokens | None = None
    """OpenAI's newer name of `max_tokens`."""

    logprobs: bool = False
    """Log-probabilities of the tokens."""

    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """And of this many likeliest in place of each."""

    metadata: dict[str, Any] | None = None
    """Without effect, as are the next two."""

    prompt_cache_key: str | None = None

    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise bad_value("top_logprobs", "`top_logprobs` needs `logprobs: true`")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            message = "`max_tokens` and `max_completion_tokens` differ; give one of them"
            raise bad_value("max_completion_tokens", message)
        return self

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens of an answer, by either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class ScoreBody(Body):
    """``POST /v1/score``: log-probabilities of texts after contexts."""

    model: _Name
    """The name of a served model."""

    context: Annotated[list[TextOrIds], BeforeValidator(partial(texts_of, param="context"))]
    """What is read before; one, or as many as there are continuations."""

    continuation: Annotated[
        list[TextOrIds], BeforeValidator(partial(texts_of, param="continuation"))
    ]
    """What is scored."""

    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)
    """Log-probabilities of this many likeliest tokens in place of each."""

    user: str | None = None
    """Without effect."""

    @model_validator(mode="after")
    def _check(self) -> ScoreBody:
        contexts, continuations = len(self.context), len(self.continuation)
        if contexts not in (1, continuations):
            raise bad_value(
                "context", f"{contexts:,} contexts for {continuations:,} continuations; give one "
                "for all, or one for each",
            )  # fmt: skip
        return self

    @property
    def pairs(self) -> list[tuple[TextOrIds, TextOrIds]]:
        """Each continuation with its context."""
        each = len(self.context) == len(self.continuation)
        contexts = self.context if each else self.context * len(self.continuation)
        return list(zip(contexts, self.continuation, strict=True))


class RewardsBody(Body):
    """``POST /v1/rewards``: what a reward model says of answers."""

    model: _Name
    """The name of a served reward model."""

    messages: Annotated[list[Messages], BeforeValidator(conversations_of)]
    """A conversation that ends with the answer to score, or a list of such conversations."""

    user: str | None = None
    """Without effect."""


class TokenizeBody(Body):
    """``POST /tokenize``: the ids of a text, or of a conversation that is to be answered."""

    model: _Name | None = None
    """The name of a served model; None: the first."""

    prompt: str | None = None
    """A text."""

    messages: Annotated[Messages | None, BeforeValidator(partial(messages_of, answered=False))] = (
        None
    )
    """Or a conversation, as the model's layout writes it."""

    add_special_tokens: bool | None = None
    """Of a text: with the tokens that the tokenizer begins whole texts with, as the prompts of
    completions have them; None: true."""

    add_generation_prompt: bool | None = None
    """Of a conversation: with the beginning of the assistant's turn; None: true."""

    return_token_strs: bool = False
    """The text of each token too."""

    @model_validator(mode="after")
    def _check(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            said = "is missing" if self.prompt is None else "and `messages` are both there"
            raise bad_value("prompt", f"`prompt` {said}; give it or `messages`")
        only = "add_special_tokens" if self.prompt is None else "add_generation_prompt"
        if getattr(self, only) is not None:
            other = "messages" if self.prompt is None else "prompt"
            raise bad_value(only, f"`{only}` does nothing with `{other}`; leave it out")
        return self


class DetokenizeBody(Body):
    """``POST /detokenize``: the text of token ids."""

    model: _Name | None = None
    """The name of a served model; None: the first."""

    tokens: Annotated[list[int], BeforeValidator(partial(ids_of, param="tokens"))]
    """Token ids; none are no text."""
