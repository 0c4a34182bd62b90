"""lm-eval's generation arguments as settings of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bc2.errors import UsageError
from bc2.generate.sampling_config import SamplingConfig
from bc2.tokenizer.tokenizer import Tokenizer

#: New tokens where a task says nothing: the default of lm-eval's `hf` model.
DEFAULT_NEW_TOKENS = 256

#: Names that lm-eval's models know for it, the first that is there counts.
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

_KNOWN = {*_NEW_TOKENS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p"}


@dataclass(frozen=True)
class Generation:
    """How a task's prompts are continued by a model."""

    sampling: SamplingConfig
    prompt_tokens: int
    """The most tokens of a prompt; more are cut from the left."""
    wanted_tokens: int
    """New tokens that the task allows; more than `sampling.max_new_tokens` if the window is too
    short for them."""


def generation_of(
    arguments: Mapping[str, Any],
    window: int,
    tokenizer: Tokenizer,
    *,
    samples: int,
    temperature: float,
    end_ids: Sequence[int] = (),
    repetition_penalty: float = 1.0,
) -> Generation:
    """The settings for a task.

    As in lm-eval's `hf` model there is always room for all new tokens: prompts have what is left
    of the window. A task that allows more than the window holds gets half of it. As there too, the
    name of the end-of-text token ends an answer like one of the task's stop texts.

    Args:
        arguments: lm-eval's ``generation_kwargs``.
        window: tokens of the model's context.
        samples: answers to each prompt.
        temperature: above 0 it replaces the task's.
        end_ids: tokens that end an answer, beside the tokenizer's end of text.
        repetition_penalty: the model's own, which transformers applies for lm-eval too.

    Raises:
        UsageError: an argument is unknown here, or its value is impossible.
    """
    unknown = sorted(set(arguments) - _KNOWN)
    if unknown:
        raise UsageError(
            f"the task generates with {unknown[0]!r}, which is unknown here",
            todo=f"known are {', '.join(sorted(_KNOWN))}",
        )
    wanted = next(
        (int(arguments[name]) for name in _NEW_TOKENS if arguments.get(name) is not None),
        DEFAULT_NEW_TOKENS,
    )
    new_tokens = wanted if wanted < window else max(1, window // 2)
    drawn = temperature or _temperature(arguments)
    until = arguments.get("until") or ()
    stops = [text for text in ([until] if isinstance(until, str) else until) if text]
    ends = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    stops += map(tokenizer.piece_of, ends)
    try:
        sampling = SamplingConfig(
            max_new_tokens=new_tokens,
            n=samples,
            temperature=drawn,
            top_p=float(arguments.get("top_p", 1.0)) if drawn else 1.0,
            top_k=int(arguments.get("top_k", 0)) if drawn else 0,
            min_p=float(arguments.get("min_p", 0.0)) if drawn else 0.0,
            stop=tuple(dict.fromkeys(stops)),
            stop_ids=tuple(dict.fromkeys([*ends, *end_ids])),
            repetition_penalty=repetition_penalty,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"cannot generate with {first['loc'][0]} = {first['input']}: {first['msg'].lower()}",
            todo="ask for fewer --samples" if first["loc"] == ("n",) else None,
        ) from error
    return Generation(sampling, window - new_tokens, wanted)


def _temperature(arguments: Mapping[str, Any]) -> float:
    """The task's own; 0 unless it asks to sample."""
    temperature = float(arguments.get("temperature") or 0.0)
    return temperature if arguments.get("do_sample") is not False else 0.0
