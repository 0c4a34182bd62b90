"""Runs a tiny model that is frozen under some layouts. Run by `test_frozen`.

As `driver.py`, whose batches these are: each rank's line of log-probabilities and hidden states,
the same of plain torch on that rank alone, and the bytes that all ranks hold.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from driver import batches, main
from torch import Tensor
from two_models_driver import MODELS, SEEDS, all_partitioned

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.parallel.build import InitialWeights
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.sequence import own_tokens
from bc2.train.device import DTYPES
from bc2.train.engines.frozen import FrozenModel


def hidden_and_log_probs(model: Transformer, batch: Batch, own: slice) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(batch.tokens).flatten()
    labels = torch.from_numpy(batch.labels).flatten()[own]
    hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
    assert not hidden.requires_grad
    return hidden, model.lm_head.log_probs(hidden, labels).log_probs


def plain(name: str, precision: str) -> Transformer:
    model = Transformer(MODELS[name])
    model.init_weights(torch.Generator().manual_seed(SEEDS[name]))
    return model.to(DTYPES[precision])  # type: ignore[index]


def held_bytes(model: Transformer) -> int:
    """Of weights and gradients, between two calls."""
    found = 0
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        pieces = [parameter.data, getattr(parameter, "ds_tensor", None)]
        found += sum(piece.numel() * piece.element_size() for piece in pieces if piece is not None)
    return found


def train(run: dict[str, Any]) -> list[list[float]]:
    """For each model a line of each rank and of plain torch; then bytes and parameters."""
    parallel = ParallelConfig(**run.get("parallel", {}))
    mesh, precision = make_mesh(parallel, torch.device("cpu"), 120), run.get("precision", "fp32")
    frozen = {}
    with ExitStack() as held:
        if run.get("all_partitioned"):
            held.enter_context(all_partitioned())
        for name, config in MODELS.items():
            frozen[name] = FrozenModel(
                config, InitialWeights(config, SEEDS[name]), parallel, mesh,
                device=torch.device("cpu"), precision=precision,
            )  # fmt: skip
    found = []
    for name, model in frozen.items():
        batch = batches(3, Mesh())[0 if mesh.tensor.size > 1 else mesh.data.rank]
        own = slice(None)
        if mesh.sequence.size > 1:
            own = own_tokens(batch.tokens.size, mesh.sequence)
        # Three times: DeepSpeed records a pass, and then fetches weights by the record.
        for _ in range(3):
            hidden, log_probs = model.call_model(hidden_and_log_probs, batch, own)
        with torch.no_grad():
            right, right_ones = hidden_and_log_probs(plain(name, precision), batch, slice(None))
        both = (hidden, log_probs), (right[own], right_ones[own])
        lines = [[*a.float().flatten().tolist(), *b.float().tolist()] for a, b in both]
        for each in mesh.world.all_gather_object(lines):
            found += each
        held_by_all = sum(mesh.world.all_gather_object(held_bytes(model.model)))
        found.append([held_by_all, sum(p.numel() for p in plain(name, precision).parameters())])
    return found


if __name__ == "__main__":
    main(train)
