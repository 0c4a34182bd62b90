"""bc2's engine by itself, at the requests that servers get."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_load.work import Pair, quantiles

#: Tokens that are answered before anything is timed.
WARM = 4


def engine_alone(
    home: Path, ref: str, pairs: Sequence[Pair], running: int, precision: str
) -> dict[str, Any]:
    """`InferenceEngine.generate`, which has all requests at hand, at most so many at once."""
    import bc2  # noqa: F401, I001 - what it sets for OpenMP comes before torch, as in its commands
    import torch

    from bc2.generate.engine import InferenceEngine
    from bc2.generate.engine_config import EngineConfig
    from bc2.generate.load import open_model
    from bc2.generate.requests import Request
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.registry import Registry
    from bc2.train.device import DTYPES

    def requests(some: Sequence[Pair], new: int | None = None) -> list[Request]:
        return [
            Request(
                pair.prompt,
                SamplingConfig(max_new_tokens=new or pair.new, stop_ids=(), temperature=0.0),
            )
            for pair in some
        ]

    first: dict[int, float] = {}

    def note(index: int, _: int, __: int) -> None:
        first.setdefault(index, time.perf_counter())

    artifact = Registry.open(home).resolve(ref, kind="checkpoint")
    with open_model(artifact, torch.device("cpu"), DTYPES[precision]) as loaded:
        config = EngineConfig(max_running=running)
        tokenizer = loaded.tokenizer
        engine = InferenceEngine(
            loaded.model, config, eos_id=tokenizer.eos_id, decode_bytes=tokenizer.generated_bytes
        )
        list(engine.generate(requests(pairs[:running], WARM)))
        began = time.perf_counter()
        answers = list(engine.generate(requests(pairs), on_token=note))
        seconds = time.perf_counter() - began
    tokens, firsts = sum(pair.new for pair in pairs), [at - began for at in first.values()]
    ids = [answer.continuations[0].ids for answer in answers]
    return {
        "clients": running, "requests": len(pairs), "tokens": tokens, "seconds": seconds,
        "tokens_per_s": tokens / seconds, "first_s": quantiles(firsts),
        "texts": [tokenizer.generated_bytes(each).decode("utf-8", "replace") for each in ids],
    }  # fmt: skip
