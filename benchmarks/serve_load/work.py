"""Requests of given lengths, clients that send them, and what that took."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from serve_load.http_client import Reply, ask

#: Tokens of prompts and of answers, drawn evenly.
PROMPT, ANSWER = (16, 256), (16, 128)


@dataclass(frozen=True)
class Pair:
    """A prompt, and how many tokens its answer has."""

    prompt: list[int]
    new: int

    def body(self, model: str) -> bytes:
        """For /v1/completions of any of the servers: greedy, streamed, of exactly that length."""
        asked = {
            "model": model, "prompt": self.prompt, "max_tokens": self.new, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return json.dumps(asked).encode()


def draw_pairs(count: int, vocab_size: int, seed: int) -> list[Pair]:
    """Random prompts, which have no beginnings in common; id 0 to 2 are left to control tokens."""
    draw = Random(seed)
    return [
        Pair(
            [draw.randrange(3, vocab_size) for _ in range(draw.randint(*PROMPT))],
            draw.randint(*ANSWER),
        )
        for _ in range(count)
    ]


async def run_clients(url: str, bodies: Sequence[bytes], clients: int) -> list[Reply]:
    """So many clients send the requests, each its next one as soon as it has its answer.

    Returns:
        Answers in the order of the requests.
    """
    replies: list[Reply | None] = [None] * len(bodies)
    # One queue for all, as an engine has: no client is left over at the end with more than one.
    coming: Iterator[tuple[int, bytes]] = iter(enumerate(bodies))

    async def client() -> None:
        for number, body in coming:
            replies[number] = await ask(url, "/v1/completions", body)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [reply for reply in replies if reply is not None]


def measure(url: str, pairs: Sequence[Pair], clients: int, model: str) -> dict[str, Any]:
    """Tokens a second, seconds to the first token and between tokens, and the texts.

    Raises:
        RuntimeError: an answer is an error, or not as long as was asked for.
    """
    bodies = [pair.body(model) for pair in pairs]
    began = time.perf_counter()
    replies = asyncio.run(run_clients(url, bodies, clients))
    seconds = time.perf_counter() - began
    firsts, gaps, texts = [], [], []
    for pair, reply in zip(pairs, replies, strict=True):
        text, times = _checked(pair, reply)
        texts.append(text)
        firsts.append(times[0] - reply.began)
        gaps += [after - before for before, after in pairwise(times)]
    tokens = sum(pair.new for pair in pairs)
    return {
        "clients": clients, "requests": len(pairs), "tokens": tokens, "seconds": seconds,
        "tokens_per_s": tokens / seconds, "first_s": quantiles(firsts),
        "between_s": quantiles(gaps), "events_per_token": (len(gaps) + len(firsts)) / tokens,
        "texts": texts,
    }  # fmt: skip


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95% and most of some seconds."""
    every = sorted(values) or [0.0]
    return {
        "median": statistics.median(every), "p95": every[math.ceil(0.95 * len(every)) - 1],
        "most": every[-1],
    }  # fmt: skip


def _checked(pair: Pair, reply: Reply) -> tuple[str, list[float]]:
    """The text of an answer, and when parts of it came."""
    if reply.status != 200 or not reply.whole:
        said = reply.body[:500].decode("utf-8", "replace")
        raise RuntimeError(f"status {reply.status}, whole: {reply.whole}: {said}")
    text, times, tokens = "", [], None
    for chunk, at in zip(reply.chunks, reply.arrivals, strict=False):
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        said = chunk["choices"][0]["text"] if chunk["choices"] else ""
        if said:
            times.append(at)
            text += said
    if tokens != pair.new:
        raise RuntimeError(f"{pair.new} tokens were asked for, and {tokens} came")
    return text, times or [reply.ended]
