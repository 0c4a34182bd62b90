"""A model's head: what is computed of the last hidden states, by `ModelConfig.head`.

Shapes:
    T  tokens      D  hidden size      V  vocabulary      C  classes

Both heads have one matrix, under the names of transformers: `lm_head.weight` [V, D] for language;
`score.weight` [1, D] or [C, D] else, as in its models for sequence classification. A tied language
head has none: it reads `model.embed_tokens.weight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from bc2.model.head_loss import HeadLoss, head_loss
from bc2.model.head_weight import at_least_fp32
from bc2.model.log_probs import TokenLogProbs, token_log_probs
from bc2.model.softmax import VocabularyShard

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.model.transformer import Decoder


#: The parameters of heads; a model has one of them.
HEADS = ("lm_head.weight", "score.weight")


class _Matrix(nn.Linear):
    """A weight [rows, D] without a bias; zero until `Transformer.init_weights` or a load."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.hidden_size, config.head_rows, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Head(_Matrix):
    """The logits of the next token, and their loss; a NormHead has rows of unit length."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self._prepare(config)

    def _prepare(self, config: ModelConfig) -> None:
        self.norm_head = config.norm_head
        #: The part of the vocabulary that this rank has; None if it has all of it.
        self.shard: VocabularyShard | None = None
        #: Whether the passes over the weight are compiled, as `head_loss` explains.
        self.compiled = False

    def loss(self, hidden: Tensor, labels: Tensor, *, z_weight: float) -> HeadLoss:
        """See `head_loss`."""
        # Through __call__, because hooks that gather a module's weights from other ranks run there.
        found: HeadLoss = self(hidden, labels, z_weight)
        return found

    def log_probs(
        self,
        hidden: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        top_k: int = 0,
    ) -> TokenLogProbs:
        """See `token_log_probs`. Every rank must call it; all get the same results."""
        options = {"temperature": temperature, "entropy": entropy, "top_k": top_k}
        found: TokenLogProbs = self(hidden, labels, 0.0, options)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits: [T, D] -> [T, V], or this rank's columns of V."""
        found: Tensor = self(hidden, None, 0.0)
        return found

    def rows(self) -> Tensor:
        """The weight [V, D] that logits are computed with: of unit rows with NormHead."""
        return normalize_rows(self.weight) if self.norm_head else self.weight

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        labels: Tensor | None,
        z_weight: float,
        log_probs: dict[str, Any] | None = None,
    ) -> HeadLoss | TokenLogProbs | Tensor:
        if labels is None:
            return F.linear(hidden, self.rows().to(hidden.dtype))
        if log_probs is not None:
            return token_log_probs(
                hidden,
                self.weight,
                labels,
                norm_head=self.norm_head,
                shard=self.shard,
                compiled=self.compiled,
                **log_probs,
            )
        return head_loss(
            hidden,
            self.weight,
            labels,
            z_weight=z_weight,
            norm_head=self.norm_head,
            shard=self.shard,
            compiled=self.compiled,
        )


class TiedHead(Head):
    """A head with the embedding's matrix, whose gradients from both are summed.

    It has no parameter: the matrix is named, cut, stored and updated as the embedding's.
    """

    def __init__(self, config: ModelConfig, decoder: Decoder):
        nn.Module.__init__(self)
        self._prepare(config)
        # In a tuple, because a module that is assigned becomes a submodule. The decoder and not
        # its embedding, which tensor parallelism replaces.
        self._decoder = (decoder,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._decoder[0].embed_tokens.weight

    def extra_repr(self) -> str:
        return "tied"


class ValueHead(_Matrix):
    """A number for each token, or the logits of its classes.

    In fp32 or wider also where the layers are bf16: a value is not one of many that are compared,
    and 8 bits of it would be few. Under tensor parallelism each rank has all of it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.scalar = config.head == "scalar"

    def forward(self, hidden: Tensor) -> Tensor:  # [T, D] -> [T] or [T, C]
        wide = at_least_fp32(hidden.dtype)
        found = F.linear(hidden.to(wide), self.weight.to(wide))
        return found.squeeze(-1) if self.scalar else found


def normalize_rows(weight: Tensor) -> Tensor:
    """NormHead: rows scaled to unit L2 length [V, D], in weight's dtype.

    The length is computed in fp32 or wider.
    """
    wide = weight.to(at_least_fp32(weight.dtype))
    return F.normalize(wide, dim=-1, eps=1e-12).to(weight.dtype)
