"""A model on one rank or several, as the engine runs it.

Every rank of a replica calls the same methods with the same arguments. Ranks that share a model's
matrices keep the keys of their own heads, and one of them chooses the tokens.

Shapes:
    T  new tokens      R  rows that are wanted      D  hidden size      V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from bc2.generate.cache.paged_attention import PagedStep
from bc2.model.attention import document_positions
from bc2.model.head_weight import head_rows
from bc2.model.log_probs import TokenLogProbs, token_log_probs
from bc2.model.transformer import AttentionCache, Layer, Positions, Transformer
from bc2.parallel.mesh import Mesh

#: ``with weights_of(path) as weights:`` has the weights of the submodule at `path` here, by name.
WeightsOf = Callable[[str], AbstractContextManager[Mapping[str, Tensor]]]


class ModelRunner:
    """Runs a model's forward passes over a cache.

    Args:
        model: one with a language head. Its weights are read where they are and never copied.
            Each rank has all tokens.
        mesh: the ranks that have it.
        weights_of: how the weights of one submodule at a time are had, if `model` does not hold
            them; every rank calls it. Then no weights are kept from pass to pass.
        dtype, device: of the layers; those of the model's weights by default.

    Raises:
        ValueError: the model has another head.
    """

    def __init__(
        self,
        model: Transformer,
        mesh: Mesh | None = None,
        *,
        weights_of: WeightsOf | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        self.model = model
        self.config = model.config
        self.mesh = mesh or Mesh()
        self.dtype: torch.dtype = dtype or model.model.norm.weight.dtype
        self.device: torch.device = device or model.device
        #: The part of the vocabulary that this rank has; None if it has all of it.
        self.shard = model.language_head.shard
        self._weights_of = weights_of
        self._head: Tensor | None = None
        self._longest_row: float | None = None

    @property
    def key_heads(self) -> int:
        """Key heads of a layer on this rank."""
        layer = self.model.model.layers[0]
        assert isinstance(layer, Layer)
        heads = len(range(self.config.num_heads)[layer.self_attn.heads])
        return heads // self.config.heads_per_key

    def refresh(self) -> None:
        """Forget what follows from the weights."""
        self._head = self._longest_row = None

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Keep no graph of what is computed."""
        # Weights that ZeRO 3 gathers may be kept for training: inference tensors could not be.
        with torch.no_grad(), torch.inference_mode(self._weights_of is None):
            yield

    # ------------------------------------------------------------------------ forward passes

    def next_logits(self, tokens: Tensor, step: PagedStep, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [R, D] of some new tokens, and the logits after them [R, V].

        Args:
            tokens: int64 [T], of all segments.
            rows: int64 [R], their places among the tokens.
        """
        hidden = self._hidden(tokens, step, rows)
        logits = F.linear(hidden, self.head())
        return hidden, self.mesh.tensor.all_gather(logits, dim=-1)

    def log_probs(
        self, tokens: Tensor, step: PagedStep, rows: Tensor, labels: Tensor, top_k: int
    ) -> TokenLogProbs:
        """Log-probabilities of labels [R] after some new tokens, at `rows` [R]."""
        hidden = self._hidden(tokens, step, rows)
        # The rows of the head have their length already.
        return token_log_probs(
            hidden,
            self.head(),
            labels,
            norm_head=False,
            top_k=top_k,
            shard=self.shard,
        )

    def _hidden(self, tokens: Tensor, step: PagedStep, rows: Tensor) -> Tensor:
        if self._weights_of is not None:
            return self.layer_by_layer(tokens, step, self.dtype, rows)
        hidden: Tensor = self.model(tokens, step.cu_seqlens, step.max_seqlen, step)
        return hidden[rows]

    def layer_by_layer(
        self, tokens: Tensor, step: PagedStep | None, dtype: torch.dtype, rows: Tensor
    ) -> Tensor:
        """Hidden states [R, D] in any dtype, with the weights of one layer at a time.

        They are converted just before the layer runs, so the extra memory is that of a layer.

        Args:
            step: the cache; None: the tokens are one sequence, from its beginning.
        """
        if step is None:
            cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32, device=tokens.device)
            longest, starts = len(tokens), None
        else:
            cu_seqlens, longest, starts = step.cu_seqlens, step.max_seqlen, step.starts()
        positions = document_positions(cu_seqlens, len(tokens), starts)
        at = Positions(self.config, positions, cu_seqlens, longest)
        with self.weights_of("model.embed_tokens") as weights:
            embed = self.model.get_submodule("model.embed_tokens")
            x: Tensor = functional_call(embed, dict(weights), (tokens,)).to(self.dtype).to(dtype)
        cache: AttentionCache | None = step
        for index in range(self.config.num_layers):
            x = self._converted(f"model.layers.{index}", dtype, x, at, cache, index)
        return self._converted("model.norm", dtype, x[rows])

    def _converted(self, path: str, dtype: torch.dtype, *args: Any) -> Tensor:
        with self.weights_of(path) as weights:
            converted = {name: weight.to(dtype) for name, weight in weights.items()}
            out: Tensor = functional_call(self.model.get_submodule(path), converted, args)
        return out

    # ------------------------------------------------------------------------------- weights

    @contextmanager
    def weights_of(self, path: str) -> Iterator[Mapping[str, Tensor]]:
        """The weights of the submodule at `path`, by name."""
        if self._weights_of is None:
            yield dict(self.model.get_submodule(path).named_parameters())
            return
        with self._weights_of(path) as weights:
            yield weights

    def head(self) -> Tensor:
        """The head's rows on this rank, of unit length with NormHead, in the layers' dtype."""
        if self._head is not None:
            return self._head
        with self.weights_of(self.config.head_module) as weights:
            rows, _ = head_rows(weights["weight"], self.dtype, self.config.norm_head)
            if self._weights_of is None:
                self._head = rows
            elif rows.data_ptr() == weights["weight"].data_ptr():
                rows = rows.clone()
        return rows

    def longest_row(self) -> float:
        """The largest L2 norm of the rows of the whole head."""
        if self._longest_row is None:
            longest = torch.linalg.vector_norm(self.head().float(), dim=1).amax()
            self._longest_row = float(self.mesh.tensor.all_reduce(longest.reshape(1), "max"))
        return self._longest_row

    def same_everywhere(self, values: Sequence[Tensor]) -> None:
        """Replace values by those of the first of the ranks that run the model together."""
        # Replicas that gather weights in every pass must make the same passes.
        group = self.mesh.tensor if self._weights_of is None else self.mesh.world
        for value in values:
            group.broadcast(value)
