"""The peer: transformers' Llama of the same shape, trained in plain torch.

It differs where the models do: no NormHead, no max-z loss, rotary positions also where the
recipe has ALiBi, attention across documents, and S - 1 labels in a sequence of S tokens, since
it shifts the labels itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bc2.bench.data import read_steps
from bc2.bench.llama import llama_config
from bc2.bench.spec import Spec
from bc2.data.loader import Batch
from bc2.errors import UsageError
from bc2.parallel.mesh import Mesh
from bc2.train.optimizer import AdamW
from bc2.train.speed.clock import Clock


def require_peer() -> None:
    """Raises: UsageError where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(
            "--against hf needs transformers, which is not installed",
            todo="pip install transformers",
        )


class Llama:
    """LlamaForCausalLM, fused AdamW and clipping, in one of the variants `spec.PEERS`."""

    def __init__(self, spec: Spec, held: ExitStack):
        self.training = spec.training
        self.device = torch.device(spec.training.device)
        self.autocast = spec.weights == "autocast"
        self.clock = Clock(self.device)
        self.mesh = Mesh()
        torch.manual_seed(spec.training.seed)
        model = _llama(spec, self.device)
        model.to(torch.bfloat16 if spec.weights == "bf16" else torch.float32)
        self.model = model.to(self.device).train()
        self.forward: Any = torch.compile(self.model) if spec.training.compile else self.model
        weights = dict(self.model.named_parameters())
        shapes = {name: weight.shape for name, weight in weights.items()}
        self.optimizer = AdamW(weights, shapes, spec.training.optimizer)
        self.steps = held.enter_context(read_steps(Path(spec.shards), spec.training))

    def step(self) -> float:
        with self.clock.part("data"):
            step = next(self.steps)
        total: Tensor | float = 0.0
        for batch in step.batches:
            with self.clock.part("forward"):
                loss = self._loss(batch) / len(step.batches)
            with self.clock.part("backward"):
                torch.autograd.backward(loss)
            # Not to wait for a GPU before it has all of the step: ours does not either.
            total += loss.detach()
        with self.clock.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.training.optimizer.clip_norm
            )
            self.optimizer.inner.step()
            self.optimizer.inner.zero_grad(set_to_none=True)
        return float(total)

    def held_tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.optimizer.tensors()

    def _loss(self, batch: Batch) -> Tensor:
        tokens = torch.from_numpy(batch.tokens).to(self.device, non_blocking=True)
        cast: AbstractContextManager[Any] = nullcontext()
        if self.autocast:
            cast = torch.autocast(self.device.type, torch.bfloat16)
        with cast:
            loss: Tensor = self.forward(input_ids=tokens, labels=tokens).loss
        return loss


def _llama(spec: Spec, device: torch.device) -> Any:
    from transformers import LlamaForCausalLM
    from transformers.utils.import_utils import is_flash_attn_2_available

    flash = device.type == "cuda" and is_flash_attn_2_available()
    kernel = "flash_attention_2" if flash and spec.weights != "fp32" else "sdpa"
    return LlamaForCausalLM(llama_config(spec.model, use_cache=False, attn_implementation=kernel))
