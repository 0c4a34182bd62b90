"""What is trained and how it is laid out: all that the memory of one rank follows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.optimizer_config import OptimizerConfig
    from bc2.train.precision import Precision
    from bc2.train.run_config import RunConfig


# Imported where they are used: an estimate for given settings needs no pydantic.


def _one_rank() -> ParallelConfig:
    from bc2.parallel.parallel_config import ParallelConfig

    return ParallelConfig()


def _adamw() -> OptimizerConfig:
    from bc2.train.optimizer_config import AdamWConfig

    return AdamWConfig()


@dataclass(frozen=True)
class TrainingShape:
    """A model, its micro-batches and its layout over ranks; and what one rank has of them."""

    model: ModelConfig
    micro_batch: int
    """Sequences of a micro-batch."""
    sequence_length: int
    """Tokens of each, one document."""
    precision: Precision
    checkpointing: int
    """Layers in a segment of activation checkpointing; 0: nothing is recomputed."""
    device: str = "cpu"
    """cpu or cuda: the head's buffers and DeepSpeed's are larger on a GPU."""
    accumulated: bool = False
    """Whether a step has several micro-batches."""
    parallel: ParallelConfig = field(default_factory=_one_rank)
    world: int = 1
    """Ranks."""
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    trained: frozenset[str] | None = None
    """The names of the model's parameters that are trained, the others are frozen; None: all."""
    adapters: int = 0
    """Parameters beside the model's, in adapters: trained."""
    cut_adapters: int = 0
    """Those of `adapters` that tensor-parallel ranks share; each of them has all others."""

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        training: RunConfig,
        parallel: ParallelConfig,
        world: int,
        *,
        trained: frozenset[str] | None = None,
        adapters: int = 0,
        cut_adapters: int = 0,
    ) -> TrainingShape:
        """The shape of a run.

        Args:
            training: device, micro-batch and activation checkpointing resolved.
            world: ranks.
            trained, adapters, cut_adapters: see the class.
        """
        import torch

        from bc2.train.device import pick_precision

        device = torch.device(training.device)
        data = max(1, world // parallel.ranks_of_a_replica)
        return cls(
            model,
            training.micro_sequences,
            training.sequence_length,
            pick_precision(training.precision, device),
            training.segment_layers,
            device=device.type,
            accumulated=training.micro_sequences * data < training.batch_sequences,
            parallel=parallel,
            world=world,
            optimizer=training.optimizer,
            trained=trained,
            adapters=adapters,
            cut_adapters=cut_adapters,
        )

    @cached_property
    def layout(self) -> ParallelConfig:
        """`parallel` as it comes to on so many ranks."""
        return self.parallel.on(self.world)

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in the layers."""
        return 2 if self.precision == "bf16" else 4

    @property
    def replicas(self) -> int:
        """Ranks with the same part of the model, which ZeRO divides by."""
        return max(1, self.world // self.layout.tensor)

    @cached_property
    def matrix(self) -> int:
        """Elements of this rank's part of the embedding."""
        return self.model.vocab_size * self.model.hidden_size // self.layout.tensor

    @cached_property
    def head(self) -> int:
        """Elements of this rank's part of the head: as large, or a few whole rows of values."""
        if self.model.head == "language":
            return self.matrix
        return self.model.head_rows * self.model.hidden_size

    @cached_property
    def params(self) -> int:
        """Parameters of this rank's part of the model, and of adapters."""
        whole = self.model.num_norm_params()
        if self.model.head != "language":
            whole += self.head
        return (self.model.num_params() - whole) // self.layout.tensor + whole + self._adapters

    @property
    def _adapters(self) -> int:
        """Parameters of adapters that this rank has."""
        return self.adapters - self.cut_adapters + self.cut_adapters // self.layout.tensor

    @cached_property
    def trained_params(self) -> int:
        """Those of `params` that are trained."""
        if self.trained is None:
            return self.params
        from bc2.parallel.build import parts
        from bc2.parallel.mesh import Group, Mesh

        ranks = Mesh(tensor=Group(tuple(range(self.layout.tensor))))
        every = parts(self.model, ranks)
        return sum(prod(every[name].shard_shape) for name in self.trained) + self._adapters

    @property
    def trained_matrix(self) -> int:
        """Elements of the embedding if it is trained, else 0."""
        return self.matrix if self._trains("model.embed_tokens.weight") else 0

    @property
    def trained_head(self) -> int:
        """Elements of the head's own matrix if it is trained, else 0: a tied one has none."""
        return 0 if self.model.tied_head else self.head_gradient

    @property
    def head_gradient(self) -> int:
        """Elements of the gradient that the head gives: of its own matrix or the embedding's."""
        return self.head if self._trains(f"{self.model.head_module}.weight") else 0

    def _trains(self, name: str) -> bool:
        return self.trained is None or name in self.trained

    @property
    def largest_trained(self) -> int:
        """Elements of the largest parameter that is trained; with frozen ones, at most."""
        model = self.model
        packed = max(model.intermediate_size, model.packed_rows) * model.hidden_size
        inner = min(packed // self.layout.tensor, self.trained_params)
        return max(self.trained_matrix, self.trained_head, inner)

    def state_bytes(self, params: int) -> int:
        """Bytes of the optimizer's state of so many parameters."""
        return round(self.optimizer.state_bytes(self.model) * params)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that go through this rank's layers."""
        return self.all_tokens // self.layout.sequence

    @property
    def all_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.sequence_length
