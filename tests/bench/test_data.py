"""The random tokens of a benchmark, read by training's own loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bc2.bench.data import EOS, read_steps, write_shards
from bc2.train.pretrain.pretrain_config import PretrainConfig

TRAINING = PretrainConfig(length="10 steps", batch_tokens=1024, micro_batch=4, sequence_length=128)


def test_a_row_is_one_document(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 256, TRAINING, documents=0)
    with read_steps(tmp_path / "shards", TRAINING) as steps:
        step = next(steps)
    assert (step.sequences, len(step.batches)) == (8, 2)
    for batch in step.batches:
        assert batch.cu_seqlens.tolist() == [0, 128, 256, 384, 512]
        assert batch.num_labels == 512
        assert batch.tokens.min() > EOS
        assert batch.tokens.max() < 256


def test_documents_have_the_mean_length_that_is_asked_for(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 256, TRAINING, documents=20)
    with read_steps(tmp_path / "shards", TRAINING) as steps:
        batches = [batch for _ in range(50) for batch in next(steps).batches]
    ends = sum(np.count_nonzero(batch.tokens == EOS) for batch in batches)
    assert 50 * 1024 / ends == pytest.approx(20, rel=0.1)
