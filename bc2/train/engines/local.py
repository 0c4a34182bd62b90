"""One process, one device, plain torch.

bf16 weights in the forward and backward pass over fp32 master weights, fp32
accumulated gradients and fp32 optimizer state (Baichuan 2 §2.6); or fp32
throughout. DeepSpeed is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.train.config import AdamWConfig
from bc2.train.device import DTYPES, Precision
from bc2.train.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")


class LocalEngine:
    """Holds the model, its fp32 master weights and AdamW.

    Args:
        model: built on the device in fp32; its weights become the master weights.
        config: AdamW settings.
        precision: type of the forward and backward pass.
        compile: run the model through torch.compile.
    """

    def __init__(
        self,
        model: Transformer,
        config: AdamWConfig,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
    ):
        self.model = model
        self.mixed = precision == "bf16"
        self.names = [name for name, _ in model.named_parameters()]
        self.master = [self._master(p) for p in model.parameters()]
        if self.mixed:
            model.to(DTYPES[precision])
        self.forward_model: Any = torch.compile(model) if compile else model
        self.optimizer = _adamw(self.master, config)

    def _master(self, parameter: Tensor) -> torch.nn.Parameter:
        if not self.mixed:
            assert isinstance(parameter, torch.nn.Parameter)
            return parameter
        return torch.nn.Parameter(parameter.detach().float().clone())

    def accumulate(
        self, batches: Iterable[Batch], objective: Objective, *, tokens: int
    ) -> dict[str, float]:
        """Forward and backward over the micro-batches of one step.

        Args:
            batches: the micro-batches.
            objective: returns sums over supervised tokens.
            tokens: supervised tokens of all of them: what the sums are divided by.

        Returns:
            Means over the step: ``loss`` (the objective) and what it logs.
        """
        self.discard()
        sums: dict[str, float] = {}
        for batch in batches:
            loss = objective(self.forward_model, batch)
            torch.autograd.backward(loss.total / tokens)
            self._collect()
            for name, value in {"loss": loss.total, **loss.sums}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach().double())
        return {name: value / tokens for name, value in sums.items()}

    def _collect(self) -> None:
        """Add the micro-batch's bf16 gradients to the master's in fp32."""
        if not self.mixed:
            return
        for parameter, master in zip(self.model.parameters(), self.master, strict=True):
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def gradient_norm(self) -> float:
        """Global L2 norm of the accumulated gradient."""
        grads = [p.grad for p in self.master if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        """Clip and make one optimizer step."""
        if norm > clip_norm:
            grads = [p.grad for p in self.master if p.grad is not None]
            torch._foreach_mul_(grads, clip_norm / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._publish_weights()
        self.discard()

    def discard(self) -> None:
        """Forget the accumulated gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _publish_weights(self) -> None:
        if self.mixed:
            torch._foreach_copy_([*self.model.parameters()], [*self.master])

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies in host memory of the fp32 weights and of the optimizer state."""
        weights = {n: _to_host(p) for n, p in zip(self.names, self.master, strict=True)}
        state: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.master, strict=True):
            for key, value in self.optimizer.state[master].items():
                state[f"{key}.{name}"] = _to_host(value)
        return weights, state

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Take back what `snapshot` gave, bit for bit."""
        for name, master in zip(self.names, self.master, strict=True):
            master.copy_(weights[name])
            kept = self.optimizer.state[master]
            kept.clear()
            for key in ("step", *MOMENTS):
                value = state.get(f"{key}.{name}")
                if value is not None:
                    kept[key] = value.to(master.device, copy=True)
        self._publish_weights()
        self.discard()


def _adamw(parameters: list[torch.nn.Parameter], config: AdamWConfig) -> torch.optim.AdamW:
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _to_host(value: Tensor) -> Tensor:
    # clone(): on a CPU .cpu() would share memory with the next step's update.
    return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()
