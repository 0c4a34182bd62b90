"""The logits of the next token, from a model whose parts are on several ranks.

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


def next_logits(
    model: Transformer, mesh: Mesh, tokens: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """The logits after each document's last token, of the whole vocabulary.

    Every rank of the mesh calls it with the same documents and gets the same bits, so that
    all ranks choose the same tokens.

    Args:
        tokens: int64 [T], the documents one after another.
        cu_seqlens: int32 [N+1], from 0 to T.
        max_seqlen: tokens of the longest document.

    Returns:
        [N, V], in the model's dtype.
    """
    hidden = _last_hidden(model, mesh.sequence, tokens, cu_seqlens, max_seqlen)
    logits = mesh.tensor.all_gather(model.lm_head.logits(hidden), dim=-1)
    # Replicas compute the same, but if a bit differed they would go on with different texts.
    return mesh.world.broadcast(logits.contiguous())


def _last_hidden(
    model: Transformer, group: Group, tokens: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """[N, D], on every rank of those that share the tokens."""
    last = cu_seqlens[1:].long() - 1
    short = -len(tokens) % group.size
    if short:
        # Tokens must divide evenly among the ranks: add a document whose logits are not used.
        tokens = F.pad(tokens, (0, short))
        cu_seqlens = torch.cat((cu_seqlens, cu_seqlens[-1:] + short))
    hidden: Tensor = model(tokens, cu_seqlens, max(max_seqlen, short))
    if group.size == 1:
        return hidden[last]
    own = own_tokens(len(tokens), group)
    elsewhere = (last < own.start) | (last >= own.stop)
    found = hidden[(last - own.start).masked_fill(elsewhere, 0)]
    # Adding zeros is exact.
    return group.all_reduce(found.masked_fill(elsewhere[:, None], 0.0))
