"""One process, one device, plain torch.

bf16 layers in the forward and backward pass over fp32 master weights, fp32 accumulated
gradients and fp32 optimizer state (Baichuan 2 §2.6); or fp32 throughout. DeepSpeed is not
imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transformer import Attention, Transformer
from bc2.train.allocator import keep_freed_memory
from bc2.train.clock import Clock
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
        compile: run each layer through torch.compile.
        checkpointing: recompute activations by segments of this many layers; 0: keep them.
        clock: told how long forward, head, backward and optimizer take.
    """

    def __init__(
        self,
        model: Transformer,
        config: AdamWConfig,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        checkpointing: int = 0,
        clock: Clock | None = None,
    ):
        if model.lm_head.weight.device.type == "cpu":
            keep_freed_memory()
        self.model = model
        self.clock = clock or Clock()
        self.names = [name for name, _ in model.named_parameters()]
        self.master = _masters(model) if precision == "bf16" else list(model.parameters())
        if precision == "bf16":
            for half in (model.model.layers, model.model.norm):
                half.to(DTYPES[precision])
        model.model.checkpointing = checkpointing
        if compile:
            # By layer: one graph serves them all, and recomputation stays outside of it.
            for layer in model.model.layers:
                layer.compile()
            if model.lm_head.weight.device.type == "cpu":
                _choose_products(model)
        self.optimizer = _adamw(self.master, config)

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
            loss = objective(self.model, batch, self.clock)
            with self.clock.part("backward"):
                torch.autograd.backward(loss.total / tokens)
                self._collect()
            for name, value in {"loss": loss.total, **loss.sums}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach().double())
        return {name: value / tokens for name, value in sums.items()}

    def _collect(self) -> None:
        """Add the micro-batch's bf16 gradients to the master's in fp32."""
        for parameter, master in self._copies():
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def _copies(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """bf16 parameters, each with its fp32 master."""
        for parameter, master in zip(self.model.parameters(), self.master, strict=True):
            if parameter is not master:
                yield parameter, master

    def gradient_norm(self) -> float:
        """Global L2 norm of the accumulated gradient."""
        with self.clock.part("optimizer"):
            grads = [p.grad for p in self.master if p.grad is not None]
            return float(torch.nn.utils.get_total_norm(grads))

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        """Clip and make one optimizer step."""
        with self.clock.part("optimizer"):
            # Clipping divides inside AdamW's kernel: one pass over the gradient fewer.
            excess = (norm + 1e-6) / clip_norm if norm > clip_norm else None
            self.optimizer.grad_scale = None if excess is None else torch.tensor(excess)  # type: ignore[attr-defined]
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
        copies = list(self._copies())
        if copies:
            torch._foreach_copy_([half for half, _ in copies], [master for _, master in copies])

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


def _choose_products(model: Transformer) -> None:
    """Let a compiler that is there anyway make attention's backward pass on a CPU."""
    for module in model.modules():
        if isinstance(module, Attention) and module.backend == "auto":
            module.backend = "products"


def _masters(model: Transformer) -> list[torch.nn.Parameter]:
    """fp32 parameters for AdamW: copies of the layers' and the last norm's, which become bf16.

    The embedding and the head are their own masters. An embedding looks rows up and NormHead
    makes unit rows: rounding those is all that bf16 needs. It saves a copy of the largest
    matrices and passes over them, and their gradients are never rounded.
    """
    own = {model.model.embed_tokens.weight, model.lm_head.weight}
    return [
        p if p in own else torch.nn.Parameter(p.detach().float().clone())
        for p in model.parameters()
    ]


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
