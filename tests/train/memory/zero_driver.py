"""Bytes of what DeepSpeed's optimizers hold, by the names in its source. Run by `test_states`.

    python zero_driver.py JSON

One rank of several trains a small model; rank 0 prints a line of JSON for each case of the list.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bc2.data.loader import pack, total_weights
from bc2.model.model_config import ModelConfig
from bc2.parallel.mesh import make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.deepspeed import DeepSpeedEngine
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken


def size(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages of tensors, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def gradients(zero: Any) -> int:
    """Of gradients that hang on parameters; DeepSpeed's own fp32 ones included."""
    held = [p for group in zero.bit16_groups for p in group]
    return size([*(p.grad for p in held), *(getattr(p, "grad_accum", None) for p in held)])


def summed(zero: Any) -> int:
    """Of the buffer that reduced gradients are summed in, on the device."""
    groups = [group for group in zero.averaged_gradients.values() if group is not None]
    return size(getattr(group, "flat_partition", None) for group in groups)


def train(case: dict[str, Any]) -> dict[str, int]:
    parallel = ParallelConfig(zero=case["zero"], offload_optimizer=case["offload"])
    mesh = make_mesh(parallel, torch.device("cpu"), 120)
    engine = DeepSpeedEngine(
        ModelConfig(**case["model"]), AdamWConfig(), parallel, mesh,
        device=torch.device("cpu"), precision=case["precision"], trainable=case["trained"],
    )  # fmt: skip
    zero = engine._engine.optimizer
    found: dict[str, int] = {}
    plain = engine._engine.set_gradient_accumulation_boundary

    def boundary(last: bool) -> None:
        if last and case["zero"] < 3:
            found["earlier"] = gradients(zero) + summed(zero)
        plain(last)

    engine._engine.set_gradient_accumulation_boundary = boundary
    length = case["model"]["context_length"]
    for step in range(2):
        rng = np.random.default_rng([mesh.data.rank, step])
        rows = rng.integers(3, case["model"]["vocab_size"], (case["micro_batches"], 1, length + 1))
        batches = [pack(row, np.zeros(1, np.int64), -1) for row in rows]
        tokens = engine.agree(total_weights(batches), 0, False).weights["tokens"]
        engine.accumulate(batches, NextToken(2e-4), divisor=tokens)
        if case["zero"] < 3:
            found["normed"], found["left"] = summed(zero), gradients(zero)
        engine.update(1e-3, norm=engine.gradient_norm(), clip_norm=0.5)
    if case["zero"] == 3:
        found["gradients"] = size([zero.grad_partitions_flat_buffer])
        found["gradients"] += size(flat.grad for flat in zero.fp32_partitioned_groups_flat)
        return found
    found["after"] = summed(zero)
    if case["offload"]:
        master = zero.single_partition_of_fp32_groups
        states = [t for t in engine._optimizer.tensors() if t.numel() > 1]
        found["host"] = size([*master, *(flat.grad for flat in master), *states])
        found["host"] += size(zero.param_buffer_of_bit16_for_cpu_offload_groups)
        found["host"] += size([zero.temp_grad_buffer_for_cpu_offload])
        found["host"] += size(zero.accumulated_grads_in_cpu.values())
        found["temporary"] = size([zero.temp_grad_buffer_for_gpu_offload])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in json.loads(sys.argv[1]):
        found = train(case)
        if os.environ["RANK"] == "0":
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()
