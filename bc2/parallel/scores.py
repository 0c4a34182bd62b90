"""The scores of the next token, from a model whose parts are on several ranks.

Shapes:
    T  tokens of all documents      N  documents      D  hidden size      V  vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sequence import own_tokens


def next_scores(
    model: Transformer, mesh: Mesh, tokens: Tensor, bounds: Tensor, longest: int
) -> Tensor:
    """The logits after each document's last token, of the whole vocabulary.

    Every rank of the mesh calls it with the same documents and gets the same bits, so that
    what is decided by them is decided alike.

    Args:
        tokens: int64 [T], the documents one after another.
        bounds: int32 [N+1], from 0 to T.
        longest: tokens of the longest document.

    Returns:
        [N, V], in the model's dtype.
    """
    hidden = _last_hidden(model, mesh.sequence, tokens, bounds, longest)
    scores = mesh.tensor.joined(model.lm_head.scores(hidden), dim=-1)
    # Replicas compute the same; but one bit that differs would part them for good.
    return mesh.world.first_(scores.contiguous())


def _last_hidden(
    model: Transformer, group: Group, tokens: Tensor, bounds: Tensor, longest: int
) -> Tensor:
    """[N, D], on every rank of those that share the tokens."""
    last = bounds[1:].long() - 1
    short = -len(tokens) % group.size
    if short:
        # Tokens must divide among the ranks: one document more, which nobody asks about.
        tokens = F.pad(tokens, (0, short))
        bounds = torch.cat((bounds, bounds[-1:] + short))
    hidden: Tensor = model(tokens, bounds, max(longest, short))
    if group.size == 1:
        return hidden[last]
    own = own_tokens(len(tokens), group)
    elsewhere = (last < own.start) | (last >= own.stop)
    found = hidden[(last - own.start).masked_fill(elsewhere, 0)]
    # Adding zeros is exact.
    return group.sum_(found.masked_fill(elsewhere[:, None], 0.0))
