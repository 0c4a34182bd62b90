"""What DeepSpeed is told, and the sizes of its buckets, which plans of memory need too.

Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bc2.train.optimizer_state import DEEPSPEED_SETTINGS
from bc2.train.precision import Precision

if TYPE_CHECKING:
    from bc2.parallel.parallel_config import ParallelConfig

#: Gradients that are reduced at once, at most: DeepSpeed sets room aside for so many.
BUCKET = 500_000_000


#: Host memory that pinned offloading takes at most, bytes a parameter of a rank's partition.
#: fp32 weights and gradients and the weights on their way back are pinned, 10 bytes with bf16 and
#: 12 with fp32, and torch rounds what it pins up to a power of two; then the two moments.
PINNED_BYTES = 2 * 12 + 8


def ds_settings(
    parallel: ParallelConfig, precision: Precision, parameters: int, *, pin: bool = False
) -> dict[str, Any]:
    """What DeepSpeed is told.

    Args:
        parameters: of this rank's part of the model.
        pin: whether offloaded states are in pinned memory. Copies between a GPU and other
            memory run at a tenth of the bus's speed, and the GPU waits for them.
    """
    zero: dict[str, Any] = {
        "stage": parallel.zero,
        "reduce_bucket_size": min(BUCKET, parameters),
        "allgather_bucket_size": min(BUCKET, parameters),
        "overlap_comm": parallel.overlap,
        "contiguous_gradients": True,
    }
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if parallel.zero_group is not None:
        zero["zero_hpz_partition_size"] = parallel.zero_group
    return {
        # Batches are made and counted by the loop.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        **DEEPSPEED_SETTINGS,
        "wall_clock_breakdown": False,
    }
