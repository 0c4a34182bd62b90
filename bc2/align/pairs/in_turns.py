"""Numbers of every sample of some batches, which data-parallel ranks take turns to compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh
from bc2.parallel.own_batch import own_batch

#: ``function(model, batch)``: a number, or several, for each of the batch's samples: [N, ...].
PerSample = Callable[[Transformer, Batch], Tensor]

#: `Engine.call_model` or `FrozenModel.call_model`.
CallModel = Callable[..., Tensor]


@torch.no_grad()
def in_turns(
    call_model: CallModel, mesh: Mesh, batches: Iterable[Batch], function: PerSample
) -> Iterator[npt.NDArray[np.float64]]:
    """The numbers of each batch's samples, [N, ...], in order; the same on all ranks.

    Every rank is given all batches and calls this.
    """
    data, waiting = mesh.data, iter(batches)
    while turn := list(itertools.islice(waiting, data.size)):
        # Ranks that share weights must all run the model: one without a batch repeats the last.
        own = data.rank < len(turn)
        batch = turn[data.rank if own else -1]
        found = call_model(function, own_batch(batch, mesh.sequence))
        mine = found.double().cpu().numpy() if own else None
        yield from (one for one in data.all_gather_object(mine) if one is not None)
