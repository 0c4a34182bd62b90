"""The Baichuan 2 decoder, for one device (arXiv 2309.10305, Table 3 and section 2.5).

Shapes:
    T  tokens of all documents, packed one after another
    D  hidden size      H  heads      G  heads of keys and of values      K  channels of a head
    F  feed-forward size      V  vocabulary      N  documents

A batch is one flat row of tokens. `cu_seqlens` [N+1] marks where documents begin and end;
positions start again at 0 in each document, and no token attends across a boundary. There is no
padding. Parameters have the names of the released models, from `model.embed_tokens.weight` to
`lm_head.weight`; the heads are in `bc2.model.heads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bc2.model.adapters import Adapter
from bc2.model.attention import Backend, Documents, alibi_slopes, document_positions
from bc2.model.cpu_kernels import linear_by_bmm
from bc2.model.head_weight import at_least_fp32
from bc2.model.heads import Head, TiedHead, ValueHead
from bc2.model.rotary import rotary_table, rotate

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


class Linear(nn.Linear):
    """x Wᵀ, usually without a bias. Zero until `Transformer.init_weights` or a load.

    An adapter may stand beside the weight, and adds to the output: see `bc2.model.adapters`.
    """

    adapter: Adapter | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)
        #: Whether to use `linear_by_bmm`, whose backward pass is faster on a CPU.
        self.bmm_backward = False
        self.register_module("adapter", None)

    def forward(self, x: Tensor) -> Tensor:  # [T, I] -> [T, O]
        if self.bmm_backward and x.dtype == torch.bfloat16:
            out = linear_by_bmm(x, self.weight)
            out = out if self.bias is None else out + self.bias
        else:
            out = F.linear(x, self.weight, self.bias)
        return out if self.adapter is None else out + self.adapter(x)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A row [D] for each token id; zero, like `Linear`, until `init_weights` or a load."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) · weight (arXiv 1910.07467), in x's dtype.

    rms(x) is computed in fp32 (fp64 for fp64 input).
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RMSNorm`."""
    wide = x.to(at_least_fp32(x.dtype))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


class Exchange(Protocol):
    """Exchanges tokens for heads between ranks: see `bc2.parallel.sequence`."""

    def to_heads(self, x: Tensor, parts: tuple[int, ...]) -> Tensor:
        """[T of this rank, all heads, K] -> [all T, this rank's heads, K].

        Args:
            parts: how many heads are queries, keys and values; a rank gets its share of each.
        """

    def to_tokens(self, x: Tensor) -> Tensor:
        """[all T, this rank's query heads, K] -> [T of this rank, all query heads, K]."""


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, for one forward pass: `bc2.generate.cache`."""

    def starts(self) -> Tensor:
        """Tokens that each document has in the cache: int64 [N]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
        """Store a layer's new keys and values, and attend to all up to each token: [T, H, K]."""


class Attention(nn.Module):
    """Causal attention of H query heads to G key heads, each read by H / G of them (GQA).

    The weights of Q, K and V are one matrix, one after another: with as many key heads as query
    heads, its thirds.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_size = config.head_size
        self.heads_per_key = config.heads_per_key
        self.backend: Backend = "auto"
        #: The query heads of the model that this rank has; all of them by default.
        self.heads = slice(None)
        #: If a rank has only some of the tokens: exchanges heads to get all of the tokens.
        self.exchange: Exchange | None = None
        self.W_pack = Linear(config.hidden_size, config.packed_rows, bias=config.qkv_bias)
        self.o_proj = Linear(config.num_heads * config.head_size, config.hidden_size)
        #: Norms of each query and key, or None.
        self.q_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, at: Positions, cache: AttentionCache | None, layer: int) -> Tensor:
        qkv = self.W_pack(x).view(len(x), -1, self.head_size)  # [T, H + 2 G, K]
        if self.exchange is not None:
            qkv = self.exchange.to_heads(qkv, self._parts(qkv))
        heads, keys, _ = self._parts(qkv)
        qk, v = qkv.split((heads + keys, keys), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((heads, keys), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        if at.rotary is not None:
            qk = rotate(qk, *at.rotary)
        q, k = qk.split((heads, keys), dim=1)
        if cache is None:
            out = at.documents.attend(q, k, v, self.heads, self.backend)
        else:
            slopes = None if at.slopes is None else at.slopes[self.heads]
            out = cache.attend(layer, q, k, v, slopes)
        if self.exchange is not None:
            out = self.exchange.to_tokens(out)
        mixed: Tensor = self.o_proj(out.flatten(1))
        return mixed

    def _parts(self, qkv: Tensor) -> tuple[int, int, int]:
        """The heads of queries, keys and values in [T, H + 2 G, K].

        They follow from the tensor, so that a shard of the heads works too.
        """
        keys = qkv.shape[1] // (self.heads_per_key + 2)
        return self.heads_per_key * keys, keys, keys


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # [T, D] -> [T, F] -> [T, D]
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, at: Positions, cache: AttentionCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), at, cache, layer)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything but the head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        #: Layers in a segment of activation checkpointing (Chen et al. 2016, arXiv 1604.06174).
        #: Only the input of a segment is kept, and its activations are computed again in the
        #: backward pass. 0: keep all activations.
        self.checkpointing = 0

    def forward(self, tokens: Tensor, at: Positions, cache: AttentionCache | None) -> Tensor:
        # The embedding may have a wider dtype than the layers: see LocalEngine.
        x = self.embed_tokens(tokens).to(self.norm.weight.dtype)
        count = len(self.layers)
        size = self.checkpointing if torch.is_grad_enabled() else 0
        for first in range(0, count, size or count):
            span = range(first, min(first + (size or count), count))
            if size:
                # Nothing here draws random numbers, so the generator's state need not be restored.
                x = checkpoint(
                    self._through, x, at, cache, span, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = self._through(x, at, cache, span)
        out: Tensor = self.norm(x)
        return out

    def _through(
        self, x: Tensor, at: Positions, cache: AttentionCache | None, span: range
    ) -> Tensor:
        for index in span:
            # Only a cache asks for the index. Without one it is 0, because a compiled layer would
            # be compiled for index 0 and again for the others.
            x = self.layers[index](x, at, cache, 0 if cache is None else index)
        return x


class Transformer(nn.Module):
    """A decoder and its head: `forward` computes hidden states, and the head reads them.

    They are separate because training never holds all logits: see `head_loss`. `logits` and
    `language_head` are those of a language model, and `values` those of a model with another head.
    Weights are zero (those of norms one) until `init_weights` or a state dict fills them.
    """

    # The one that the configuration names.
    lm_head: Head
    score: ValueHead

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if config.head != "language":
            self.score = ValueHead(config)
        else:
            self.lm_head = TiedHead(config, self.model) if config.tied else Head(config)

    @property
    def head(self) -> Head | ValueHead:
        """The head, whichever it is."""
        return self.lm_head if self.config.head == "language" else self.score

    @property
    def language_head(self) -> Head:
        """The head of a language model. Raises: ValueError if this is none."""
        if self.config.head != "language":
            raise ValueError(
                f"a model with a {self.config.head} head has no next token: it needs a language "
                'head (model.head = "language")'
            )
        return self.lm_head

    @property
    def device(self) -> torch.device:
        """Where the head's weight is, and hidden states come out."""
        return self.head.weight.device

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: integer [T].
            cu_seqlens: int32 [N+1] on the same device, from 0 to T.
            max_seqlen: tokens of the longest document.
            cache: keys and values of earlier tokens of each document.

        Returns:
            [T, D] in the model's dtype.
        """
        start = None if cache is None else cache.starts()
        positions = document_positions(cu_seqlens, len(tokens), start)
        at = Positions(self.config, positions, cu_seqlens, max_seqlen)
        hidden: Tensor = self.model(tokens, at, cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token: [T, D] -> [T, V], in hidden's dtype."""
        return F.linear(hidden, self.head_weight().to(hidden.dtype))

    def head_weight(self) -> Tensor:
        """The head's weight [V, D] that logits are computed with: of unit rows with NormHead."""
        return self.language_head.rows()

    def values(self, hidden: Tensor) -> Tensor:
        """What a scalar head says of each token: [T, D] -> [T]; of classes their logits [T, C].

        Returns:
            fp32 or wider, differentiable. Of hidden states of some tokens: those of these tokens,
            on every tensor-parallel rank.

        Raises:
            ValueError: the model has a language head.
        """
        if self.config.head == "language":
            raise ValueError("a model with a language head has logits, not values")
        # Through __call__: see `Head.loss`.
        found: Tensor = self.score(hidden)
        return found

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw all weights. A seed gives the same weights on every device and in every dtype.

        Linear layers and the embedding are drawn from N(0, initializer_range²); norms are 1, biases
        are 0. A NormHead is drawn from U(-1/√D, 1/√D) as in the released code (kaiming_uniform with
        a=√5). The length of its rows does not change the output, but it changes training: the
        gradient of a row is orthogonal to the row and inversely proportional to its length, so an
        optimizer's step turns a short row further. U(-1/√D, 1/√D) gives rows of length about
        1/√3 whatever D is; with N(0, 0.02²) the length would depend on D.

        A head of values is drawn from N(0, initializer_range²), as transformers draws it. The
        head is drawn last: models of one seed differ in their heads alone.

        Args:
            generator: of the CPU, where everything is drawn in fp32.
        """
        for name, weight in self.named_parameters():
            if not weight.is_meta:
                weight.copy_(draw_weight(self.config, name, weight.shape, generator))


def draw_weight(
    config: ModelConfig, name: str, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    """The initial value of a parameter, as `Transformer.init_weights` says: fp32 on the CPU.

    Call it for each parameter in the model's order, because each draw advances the generator.
    """
    drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
    if drawn.dim() == 1:
        return drawn.fill_(0.0 if name.endswith(".bias") else 1.0)
    if name == "lm_head.weight" and config.norm_head:
        bound = config.hidden_size**-0.5
        return drawn.uniform_(-bound, bound, generator=generator)
    return drawn.normal_(0.0, config.initializer_range, generator=generator)


class Positions:
    """What all layers of one forward pass share: boundaries, rotary angles, ALiBi's slopes."""

    def __init__(self, config: ModelConfig, positions: Tensor, cu_seqlens: Tensor, max_seqlen: int):
        self.rotary: tuple[Tensor, Tensor] | None = None
        self.slopes: Tensor | None = None
        if config.position == "rope":
            self.rotary = rotary_table(
                positions, config.head_size, config.rope_base, config.rope_scaling
            )
        else:
            # Not to wait for the device.
            self.slopes = alibi_slopes(config.num_heads).to(positions.device, non_blocking=True)
        self.documents = Documents(
            cu_seqlens, max_seqlen, positions, self.slopes, config.sliding_window
        )
