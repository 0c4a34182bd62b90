"""DeepSpeed's ZeRO: ranks share optimizer states (1), gradients (2) and weights (3).

The loop, the objective and the samples are those of the local engine. DeepSpeed reduces
gradients and partitions states, and does nothing else: losses are divided by the step's weight
here, the optimizer clips, and the norm is taken before anything is updated, so that a bad step
can be skipped.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bc2.console import note
from bc2.data.loader import Batch
from bc2.errors import RunFailed
from bc2.free_memory import device_available, host_available
from bc2.generate.runner import ModelRunner
from bc2.model.adapters import AddAdapters
from bc2.model.heads import Head
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel.build import InitialWeights, build_model, parts
from bc2.parallel.mesh import Mesh
from bc2.parallel.own_batch import own_batch
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, StateSource
from bc2.train.clock import Clock
from bc2.train.device import DTYPES
from bc2.train.engines.base import (
    Engine,
    EngineState,
    add_sums,
    hold_share,
    mark_last,
    root,
)
from bc2.train.engines.deepspeed_model import (
    CallsFunction,
    DeepSpeedGroups,
    allocate,
    import_deepspeed,
    stdout_to_stderr,
)
from bc2.train.engines.deepspeed_settings import PINNED_BYTES, ds_settings
from bc2.train.engines.host_copies import CopySet, HostCopies
from bc2.train.engines.trainable import Trainable, freeze, names_to_train
from bc2.train.engines.zero import (
    OwnedSlice,
    Zero,
    keep_hooks_uncompiled,
    load_weight,
    partition_of,
    zero_of,
)
from bc2.train.objective import Loss, Objective
from bc2.train.optimizer import STEP, make_optimizer
from bc2.train.optimizer_config import OptimizerConfig
from bc2.train.precision import Precision


class DeepSpeedEngine(Engine):
    """See `Engine`.

    Args:
        seed: weights are drawn from it; None: they are restored from a checkpoint instead.
        trainable: which parameters are trained; None: all of them.
        adapters: those that the model has.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig,
        parallel: ParallelConfig,
        mesh: Mesh,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        compile: bool = False,
        checkpointing: int = 0,
        seed: int | None = 0,
        clock: Clock | None = None,
        trainable: Trainable | None = None,
        adapters: AddAdapters | None = None,
    ):
        self.mesh = mesh
        self.clock = clock or Clock()
        self.adapters = adapters
        self.parts = parts(config, mesh, adapters)
        whole = parallel.zero < 3 and parallel.ranks_of_a_replica == 1
        self.shares_weights = not whole
        self._partitioned = parallel.zero == 3
        trained = names_to_train(self.parts, trainable)
        updated = sum(prod(self.parts[name].shard_shape) for name in trained)
        pin = parallel.offload_optimizer and may_pin(device, updated, mesh)
        settings = ds_settings(parallel, precision, updated, pin=pin)
        self._copies_gradients = parallel.offload_optimizer and device.type == "cuda"
        with stdout_to_stderr():
            deepspeed = import_deepspeed(device, mesh)
            model = build_model(config, mesh, adapters)
            freeze(model, trained, DTYPES[precision])
            allocate(model, device, DTYPES[precision], mesh, settings, deepspeed)
            model.model.checkpointing = checkpointing
            if compile:
                for layer in model.model.layers:
                    layer.compile()
                if isinstance(model.head, Head):
                    model.head.compiled = device.type != "cpu"
            self.parameters = dict(model.named_parameters())
            for name, parameter in self.parameters.items():
                # DeepSpeed takes a norm of its own, which fails where no parameter has this mark.
                parameter.tensor_model_parallel = self.parts[name].dim is not None  # type: ignore[attr-defined]
            shapes = {name: part.shape for name, part in self.parts.items()}
            self._optimizer = make_optimizer(dict(self._trained()), shapes, optimizer)
            self._engine, *_ = deepspeed.initialize(
                model=CallsFunction(model),
                optimizer=self._optimizer.inner,
                config=settings,
                mpu=DeepSpeedGroups(mesh),
            )
        if compile and self._partitioned:
            keep_hooks_uncompiled(model.model.layers)
        self.model = model
        self._copies_of_state = HostCopies(device)
        self._zero: Zero = zero_of(self._engine, self._optimizer)
        self.blank = seed is None
        if seed is not None:
            # DeepSpeed made its fp32 weights from rounded ones; these are not rounded.
            self.restore(InitialWeights(config, seed, adapters), HeldTensors())

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are trained, by name: all that ZeRO has states of."""
        return ((name, one) for name, one in self.parameters.items() if one.requires_grad)

    def accumulate(
        self, batches: Iterable[Batch], objective: Objective, *, divisor: float
    ) -> dict[str, float]:
        self.check_restored()
        self.discard()
        sums: dict[str, Tensor] = {}
        for batch, last in mark_last(batches):
            # ZeRO reduces gradients as they come, and finishes after the last micro-batch.
            self._engine.set_gradient_accumulation_boundary(last)
            loss = self.loss(objective, batch, self.clock)
            with self.clock.part("backward"):
                # DeepSpeed averages over the replicas.
                mean = loss.total * (self.mesh.replicas.size / divisor)
                self._engine.backward(mean, scale_wrt_gas=False)
            add_sums(sums, loss)
        return self._summed(sums, data=True)

    def gradient_norm(self) -> float:
        with self.clock.part("optimizer"):
            device = next(iter(self.parameters.values())).device
            if self._copies_gradients:
                # DeepSpeed copies them to pinned memory behind the backward pass, and waits for
                # that in its step(), not here (`stage_1_and_2.py`: _record_offload_copy).
                torch.cuda.synchronize(device)
            squares = torch.zeros(2, dtype=torch.float64, device=device)
            for name, parameter in self._trained():
                grad = self._zero.gradient(parameter)
                if grad is not None:
                    cut = self.parts[name].dim is not None
                    norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
                    squares[0 if cut else 1] += norm.double().square().to(device)
            self.mesh.replicas.all_reduce(squares)
            self.mesh.tensor.all_reduce(squares[:1])
            return root(float(squares.sum()))

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        with self.clock.part("optimizer"):
            self._optimizer.prepare(learning_rate, norm=norm, clip_norm=clip_norm)
            self._engine.step()
            if getattr(self._engine.optimizer, "overflow", False):
                raise RunFailed("DeepSpeed left out an update that was judged good")

    def discard(self) -> None:
        self._zero.forget()

    def loss(self, objective: Objective, batch: Batch, clock: Clock) -> Loss:
        # DeepSpeed looks for tensors in the output, and knows only tuples and dictionaries.
        own = own_batch(batch, self.mesh.sequence)
        total, sums = self._run_model(_total_and_sums, objective, own, clock)
        return Loss(total, sums)

    def _run_model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._engine(function, *arguments)

    @contextmanager
    def runner(self) -> Iterator[ModelRunner]:
        """See `Engine`. ZeRO 3 gathers all weights once, or in every pass if there is no room."""
        self.check_restored()
        if not self._partitioned:
            with super().runner() as runner:
                yield runner
            return
        import deepspeed

        # A pass that ended before the recorded one has left weights that are on their way.
        self._zero.settle()

        @contextmanager
        def weights_of(path: str) -> Iterator[dict[str, Tensor]]:
            held = dict(self.model.get_submodule(path).named_parameters())
            with deepspeed.zero.GatheredParameters(list(held.values())):
                yield {name: parameter.data for name, parameter in held.items()}

        # DeepSpeed's hooks would partition the weights of a module again after it was used.
        bare = self._with_all_tokens()
        if self._room_for_all():
            with weights_of("") as weights:
                bare.load_state_dict(weights, assign=True)
                yield ModelRunner(bare, self.mesh)
            return
        note("generating with the weights of one layer at a time: all do not fit at once")
        first = next(iter(self.parameters.values()))
        yield ModelRunner(
            bare, self.mesh, weights_of=weights_of, dtype=first.dtype, device=first.device
        )

    def _room_for_all(self) -> bool:
        """Whether each rank can hold all weights of its part, and as much again in the pass."""
        parameters = list(self.parameters.values())
        needed = sum(prod(part.shard_shape) for part in self.parts.values())
        needed *= parameters[0].element_size()
        free = self.mesh.world.all_gather_object(device_available(parameters[0].device))
        return min(free) > 2 * needed

    def snapshot(self, *, frozen: bool = True) -> EngineState:
        self.check_restored()
        with self._copies_of_state.begin() as copies:
            state = EngineState(give_back=copies.give_back)
            for name, parameter in self.parameters.items():
                if parameter.requires_grad:
                    self._hold(state, copies, name, self._zero.run(parameter))
                elif frozen:
                    self._hold_frozen(state, copies, name, parameter)
        return state

    def _hold_frozen(
        self, state: EngineState, copies: CopySet, name: str, parameter: nn.Parameter
    ) -> None:
        """Hold this rank's share of a weight that it has all of, or its piece with ZeRO 3."""
        part = self.parts[name]
        if not self._partitioned:
            hold_share(state.weights, name, part, parameter, self.mesh, copies)
            return
        first, count = partition_of(parameter)
        if part.dim is None and self.mesh.tensor.rank:
            count = 0
        piece = parameter.ds_tensor[:count].float()  # type: ignore[attr-defined]
        state.weights.add(name, part, first, copies.copy(name, piece))

    def _hold(self, state: EngineState, copies: CopySet, name: str, run: OwnedSlice | None) -> None:
        """Hold this rank's slice of a parameter and of its states."""
        part = self.parts[name]
        if part.dim is None and self.mesh.tensor.rank:
            # Every tensor rank has what is not cut: the first one writes it.
            run = None
        _hold(state.weights, copies, name, part, run, None)
        if not self._zero.stepped:
            return
        for key in self._optimizer.state_names[name]:
            _hold(state.optimizer, copies, f"{key}.{name}", part, run, key)
        # A copy, as all of the state: it is written while training continues.
        step = self._zero.step().float().cpu().clone() if self.mesh.first else None
        state.optimizer.add(f"{STEP}.{name}", TensorShard(()), 0, step)

    def held_tensors(self) -> Iterator[Tensor]:
        yield from self._zero.flat
        yield from self._optimizer.tensors()

    @torch.no_grad()
    def restore(self, weights: StateSource, optimizer: StateSource) -> None:
        stepped = any(f"{STEP}.{name}" in optimizer for name, _ in self._trained())
        self._zero.make_states(stepped)
        step: Tensor | None = None
        for name, parameter in self.parameters.items():
            part = self.parts[name]
            if not parameter.requires_grad:
                if not self._keeps(name, weights):
                    load_weight(parameter, name, part, weights)
                continue
            run = self._zero.run(parameter)
            first, count = (run.first, run.count) if run else (0, 0)
            read = weights.read(name, part, first, count)
            if run is not None:
                run.weight.copy_(read)
                for key in self._optimizer.state_names[name] if stepped else ():
                    run.state(key).copy_(optimizer.read(f"{key}.{name}", part, first, count))
            if step is None and f"{STEP}.{name}" in optimizer:
                step = optimizer.read(f"{STEP}.{name}", TensorShard(()), 0, 1)
        if step is not None:
            self._zero.set_step(step)
        self._zero.publish_weights()
        self.discard()
        self.blank = False


def _hold(
    held: HeldTensors,
    copies: CopySet,
    name: str,
    part: TensorShard,
    run: OwnedSlice | None,
    key: str | None,
) -> None:
    if run is None:
        held.add(name, part, 0, None)
        return
    value = run.weight if key is None else run.state(key)
    held.add(name, part, run.first, copies.copy(name, value.detach().float()))


def may_pin(device: torch.device, parameters: int, mesh: Mesh) -> bool:
    """Whether the host has room for the offloaded states of all ranks of a machine, pinned.

    Args:
        parameters: of this rank's part of the model.

    Returns:
        The same on every rank.
    """
    if device.type != "cuda":
        return False
    # Not by the number of GPUs: under srun each rank may see its own alone.
    told = mesh.world.all_gather_object((socket.gethostname(), host_available()))
    ranks = max(Counter(machine for machine, _ in told).values())
    needed = PINNED_BYTES * -(-parameters // mesh.replicas.size) * ranks
    available = min(free for _, free in told)
    if needed > available:
        note(
            f"offloaded states are not pinned, which makes steps slower: that may take "
            f"{needed / 1e9:.0f} GB of this machine's memory, and {available / 1e9:.0f} are free"
        )
    return needed <= available


def _total_and_sums(
    model: Transformer, objective: Objective, batch: Batch, clock: Clock
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = objective(model, batch, clock)
    return loss.total, dict(loss.sums)
