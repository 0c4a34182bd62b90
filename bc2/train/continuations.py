"""What the model that a run trains makes of some prompts, as it is between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from bc2.generate.cache.memory import block_bytes
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.transformer import Transformer
from bc2.train.deterministic import in_any_order
from bc2.train.engines.base import Engine


def continuations(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_ids: tuple[int, ...],
    check: Callable[[], None],
) -> list[list[int]]:
    """Continuations by the likeliest token; of a rank that need not take part, none.

    Drawn from one candidate, and not by temperature 0: that settles the near ties of a 16-bit
    model in fp32, so that other prompts change nothing. Here they are always the same prompts,
    and an untrained model would be in a near tie at each token.

    Args:
        prompts: token ids.
        new_tokens: at most this many are added to each.
        end_ids: tokens that end a continuation, which are not part of it.
        check: called after each token; if it raises, so does this.

    Returns:
        The new tokens of each prompt. Where one rank can do it alone, the first one does.
    """
    if not prompts or not (engine.shares_weights or engine.mesh.first):
        return []
    settings = SamplingConfig(top_k=1, max_new_tokens=new_tokens, stop_ids=end_ids)
    # Compiled layers are compiled for training's shapes; here each pass has its own. Some
    # kernels of a draw have no deterministic form on a GPU, but there is one candidate.
    eager = torch.compiler.set_stance("force_eager")
    with eager, in_any_order(), _one_dtype(engine.model), engine.runner() as runner:
        config = _engine_config(runner, [len(prompt) + new_tokens for prompt in prompts])
        generator = InferenceEngine(runner, config, eos_id=-1)
        requests = [Request(prompt, settings) for prompt in prompts]
        made = list(generator.generate(requests, on_token=lambda *_: check()))
    return [new.ids for answer in made for new in answer.continuations]


def _engine_config(runner: ModelRunner, lengths: Sequence[int]) -> EngineConfig:
    """A cache that holds all of them at once."""
    size = EngineConfig().block_tokens
    each = block_bytes(runner.config, runner.key_heads, size, runner.dtype)
    blocks = sum(-(-length // size) for length in lengths)
    return EngineConfig(cache_bytes=blocks * each)


@contextmanager
def _one_dtype(model: Transformer) -> Iterator[None]:
    """Have every weight in the type of the layers, as `bc2 generate` loads a model."""
    dtype = model.model.norm.weight.dtype
    others = [(p, p.data) for p in model.parameters() if p.dtype != dtype]
    try:
        for parameter, data in others:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in others:
            parameter.data = data
