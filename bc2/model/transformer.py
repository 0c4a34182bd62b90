"""The Baichuan 2 decoder, for one device (arXiv 2309.10305, Table 3 and section 2.5).

Shapes:
    T  tokens of all documents, packed one after another
    D  hidden size      H  heads      K  channels of a head, D / H
    F  feed-forward size      V  vocabulary      N  documents

A batch is one flat row of tokens. `cu_seqlens` [N+1] marks where documents begin and end;
positions start again at 0 in each document, and no token attends across a boundary. There is no
padding. Parameters have the names of the released models, from `model.embed_tokens.weight` to
`lm_head.weight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bc2.model.attention import Backend, Documents, alibi_slopes, document_positions
from bc2.model.cpu_kernels import linear_by_bmm
from bc2.model.head_loss import HeadLoss, head_loss
from bc2.model.log_probs import TokenLogProbs, token_log_probs
from bc2.model.softmax import VocabularyShard

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


class Linear(nn.Linear):
    """x Wᵀ without a bias. Weights are zero until `Transformer.init_weights` or a load."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        #: Whether to use `linear_by_bmm`, whose backward pass is faster on a CPU.
        self.bmm_backward = False

    def forward(self, x: Tensor) -> Tensor:  # [T, I] -> [T, O]
        if self.bmm_backward and x.dtype == torch.bfloat16:
            return linear_by_bmm(x, self.weight)
        return F.linear(x, self.weight)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Embedding(nn.Embedding):
    """A row [D] for each token id; zero, like `Linear`, until `init_weights` or a load."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Head(Linear):
    """The logits of the next token, and their loss; a NormHead has rows of unit length."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.hidden_size, config.vocab_size)
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


class RMSNorm(nn.Module):
    """x / rms(x) · weight (arXiv 1910.07467), in x's dtype.

    rms(x) is computed in fp32 (fp64 for fp64 input).
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [T, D] -> [T, D]
        wide = _at_least_fp32(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class Exchange(Protocol):
    """Exchanges tokens for heads between ranks: see `bc2.parallel.sequence`."""

    def to_heads(self, x: Tensor) -> Tensor:
        """[T of this rank, ..., H, K] -> [all T, ..., H of this rank, K]."""

    def to_tokens(self, x: Tensor) -> Tensor:
        """The inverse of `to_heads`."""


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, for one forward pass: `bc2.generate.cache`."""

    def starts(self) -> Tensor:
        """Tokens that each document has in the cache: int64 [N]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
        """Store a layer's new keys and values, and attend to all up to each token: [T, H, K]."""


class Attention(nn.Module):
    """Multi-head causal attention; the weights of Q, K and V are the thirds of one matrix."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.backend: Backend = "auto"
        #: The heads of the model that this rank has; all of them by default.
        self.heads = slice(None)
        #: If a rank has only some of the tokens: exchanges heads to get all of the tokens.
        self.exchange: Exchange | None = None
        self.W_pack = Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, at: Positions, cache: AttentionCache | None, layer: int) -> Tensor:
        # The number of heads follows from the weights, so that a shard of the heads works too.
        qkv = self.W_pack(x).view(len(x), 3, -1, self.head_dim)  # [T, 3, H, K]
        if self.exchange is not None:
            qkv = self.exchange.to_heads(qkv)
        q, k, v = qkv.unbind(1)
        if at.rotary is not None:
            q, k = rotate(qkv[:, :2], *at.rotary).unbind(1)
        if cache is None:
            out = at.documents.attend(q, k, v, self.heads, self.backend)
        else:
            slopes = None if at.slopes is None else at.slopes[self.heads]
            out = cache.attend(layer, q, k, v, slopes)
        if self.exchange is not None:
            out = self.exchange.to_tokens(out)
        mixed: Tensor = self.o_proj(out.flatten(1))
        return mixed


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
    """A language model: `forward` computes hidden states, and `logits` computes logits from them.

    They are separate because training never holds all logits: see `head_loss`. Weights are zero
    (those of norms one) until `init_weights` or a state dict fills them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Head(config)

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
        return self.lm_head.rows()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw all weights. A seed gives the same weights on every device and in every dtype.

        Linear layers and the embedding are drawn from N(0, initializer_range²); norms are 1. A
        NormHead is drawn from U(-1/√D, 1/√D) as in the released code (kaiming_uniform with a=√5).
        The length of its rows does not change the output, but it changes training: the gradient
        of a row is orthogonal to the row and inversely proportional to its length, so an
        optimizer's step turns a short row further. U(-1/√D, 1/√D) gives rows of length about
        1/√3 whatever D is; with N(0, 0.02²) the length would depend on D.

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
        return drawn.fill_(1.0)
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
            self.rotary = rotary_table(positions, config.head_dim, config.rope_base)
        else:
            # Not to wait for the device.
            self.slopes = alibi_slopes(config.num_heads).to(positions.device, non_blocking=True)
        self.documents = Documents(cu_seqlens, max_seqlen, positions, self.slopes)


def rotary_table(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles for `rotate`, in fp32: each [T, 1, 1, K].

    In 16 bits, neighbouring positions above 256 would have the same angle.

    Args:
        positions: int64 [T].
        head_dim: K.
        base: `ModelConfig.rope_base`.
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / base ** (channel / head_dim)
    angle = positions.float()[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return (
        torch.cat((cos, cos), dim=-1)[:, None, None, :],
        torch.cat((-sin, sin), dim=-1)[:, None, None, :],
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of [T, 2, H, K], computed in fp32 or wider.

    Channel k is paired with channel k + K/2, as in GPT-NeoX.
    """
    wide = _at_least_fp32(x)
    # flip instead of chunk and cat: its backward pass is several times faster on a CPU.
    halves = wide.view(*wide.shape[:-1], 2, wide.shape[-1] // 2)
    swapped = halves.flip(-2).flatten(-2)
    return (wide * cos + swapped * sin).to(x.dtype)


def normalize_rows(weight: Tensor) -> Tensor:
    """NormHead: rows scaled to unit L2 length [V, D], in weight's dtype.

    The length is computed in fp32 or wider.
    """
    return F.normalize(_at_least_fp32(weight), dim=-1, eps=1e-12).to(weight.dtype)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
