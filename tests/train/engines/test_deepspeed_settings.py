"""What DeepSpeed is told of a layout."""

from __future__ import annotations

from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.deepspeed_settings import BUCKET, ds_settings


def test_stage_precision_and_buckets() -> None:
    told = ds_settings(ParallelConfig(zero=2), "bf16", 1000)
    assert told["bf16"] == {"enabled": True}
    zero = told["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1000
    assert not {"offload_optimizer", "zero_hpz_partition_size"} & set(zero)
    large = ds_settings(ParallelConfig(zero=2), "fp32", 10 * BUCKET)
    assert large["bf16"] == {"enabled": False}
    assert large["zero_optimization"]["reduce_bucket_size"] == BUCKET


def test_offloading_and_groups_of_ranks() -> None:
    layout = ParallelConfig(zero=3, zero_group=4, offload_optimizer=True)
    zero = ds_settings(layout, "bf16", 1000)["zero_optimization"]
    # DeepSpeed's own default is to pin.
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    pinned = ds_settings(layout, "bf16", 1000, pin=True)["zero_optimization"]
    assert pinned["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["zero_hpz_partition_size"] == 4
