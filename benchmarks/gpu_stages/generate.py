"""The inference engine against the model in fp64 on the CPU, without a cache."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Request, ScoreRequest
from bc2.model.transformer import Transformer
from gpu_stages.checks import Checks
from gpu_stages.plain_configs import Cache, Model, Sampling
from gpu_stages.training import EOS

#: Nats: the worst log-likelihood of a token.
LIMITS = {"fp32": 2e-4, "bf16": 0.15}
WHY = "the rounding of logits of size 10 or less, through a few layers"


def run(checks: Checks, part: str) -> None:
    """Greedy tokens and log-likelihoods, with RoPE and ALiBi."""
    for position in ("rope", "alibi"):
        model = _model(checks.small, position)
        wide = _build(model)
        prompts = _prompts(model)
        new = 6 if checks.small else 16
        expected = [_greedy(wide, prompt, new) for prompt in prompts]
        for precision in ("fp32", "bf16"):
            name = f"{precision} {position}"
            with checks.part(name):
                _compare(checks, name, wide, prompts, expected, precision)


def _model(small: bool, position: str) -> Model:
    width, layers, heads = (48, 2, 3) if small else (256, 4, 2)
    return Model(521, width, 11 * width // 4, layers, heads, position, context_length=256)


def _build(model: Model) -> Transformer:
    """In fp64, with weights that bf16 numbers hold: so both precisions have the same model."""
    built = Transformer(model)
    built.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in built.parameters():
            # Larger than a new model's: its logits would hardly differ.
            weight.copy_((weight * (3.0 if weight.dim() > 1 else 1.0)).bfloat16())
    return built.double().eval()


def _prompts(model: Model) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = (1, 2, 17, 40, 63, 100)
    return [rng.integers(EOS + 1, model.vocab_size, length).tolist() for length in lengths]


@torch.no_grad()
def _logits(wide: Transformer, ids: list[int]) -> torch.Tensor:
    """fp64 logits after each token, of the whole sequence at once: [T, V]."""
    hidden = wide(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
    return wide.logits(hidden)


def _compare(
    checks: Checks,
    name: str,
    wide: Transformer,
    prompts: list[list[int]],
    expected: list[list[int]],
    precision: str,
) -> None:
    """Args: wide: the model in fp64; expected: how it continues each prompt."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = Transformer(wide.config)
    model.load_state_dict(wide.state_dict())
    model = model.to(checks.device, dtype).eval()
    engine = InferenceEngine(model, Cache(cache_bytes=64 << 20, step_tokens=96), eos_id=EOS)
    settings = Sampling(max_new_tokens=len(expected[0]), temperature=0.0, stop_ids=())
    answers = engine.generate(Request(prompt, settings) for prompt in prompts)
    found = [answer.continuations[0].ids for answer in answers]
    pairs = list(zip(chain(*found), chain(*expected), strict=True))
    other = sum(a != b for a, b in pairs)
    if precision == "fp32":
        why = "greedy output follows from prompt and model; near ties are settled in fp64"
        checks.true(f"{name}: greedy tokens", other == 0, f"{other} of {len(pairs)} differ", why)
    else:
        checks.figure(f"{name}: greedy tokens unlike fp64's", f"{other} of {len(pairs)}")
    requests = [ScoreRequest(p, e) for p, e in zip(prompts, expected, strict=True)]
    scores = [score.log_probs for score in engine.score(requests)]
    worst = 0.0
    for prompt, continuation, score in zip(prompts, expected, scores, strict=True):
        ids = prompt + continuation
        rows = _logits(wide, ids[:-1]).log_softmax(-1)[len(prompt) - 1 :]
        right = rows.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        worst = max(worst, float((torch.tensor(score).double() - right).abs().max()))
    checks.within(f"{name}: log-likelihoods", worst, LIMITS[precision], WHY)


def _greedy(wide: Transformer, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(_logits(wide, ids)[-1].argmax()))
    return ids[len(prompt) :]
