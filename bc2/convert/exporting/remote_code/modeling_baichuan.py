"""Baichuan's decoder for transformers: RoPE or ALiBi, NormHead, weights by their released names.

Shapes:
    B  texts       S  tokens that are new       L  tokens with those in the cache
    D  width       H  heads of queries          G  of keys and values        K  channels of a head
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from .configuration_baichuan import BaichuanConfig

#: What outputs call the keys and values of earlier tokens; it changed within transformers 5.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"


class BaichuanRMSNorm(nn.Module):
    """RMSNorm, computed in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class BaichuanMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: BaichuanConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def alibi_slopes(heads: int) -> Tensor:
    """What each head takes off a score for every token of distance: fp32 [H].

    A geometric series for a power of two; for others that of the power of two below, then every
    second one of the series of twice as many.
    """
    below = 2 ** int(math.log2(heads))
    powers = [8 * (n + 1) / below for n in range(below)]
    powers += [4 * (2 * n + 1) / below for n in range(heads - below)]
    return torch.tensor([2.0**-power for power in powers])


def rotary_angles(positions: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of [B, S] positions, in fp32: each [B, 1, S, K]."""
    pairs = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * 10000.0 ** (-pairs / channels)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel k with channel k + K/2, in fp32: [B, H, S, K]."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = wide * cos.to(x.device) + torch.cat((-second, first), dim=-1) * sin.to(x.device)
    return turned.to(x.dtype)


class Bias:
    """What is added to the scores of a forward pass; all layers share it.

    Args:
        config: of the model.
        mask: what a caller may say: None; [B, L], 1 for tokens and 0 for padding; or ready for
            scores, [B, 1, S, L]: true for what is seen, or numbers to add.
        past: tokens in the cache.
        count: S.
    """

    def __init__(self, config: BaichuanConfig, mask: Tensor | None, past: int, count: int):
        self._heads = config.num_attention_heads
        self._alibi = config.position_embedding == "alibi"
        if mask is not None and mask.dim() == 2:
            mask = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        self._mask, self._past, self._count = mask, past, count
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def is_causal(self, length: int) -> bool:
        """Whether it is the plain triangle, for which kernels need no mask."""
        return self._mask is None and not self._alibi and self._count == length

    def of(self, length: int, like: Tensor) -> Tensor:
        """For the scores of all keys: [B or 1, H or 1, S, L].

        Args:
            length: L.
            like: of the device and the type that are needed.
        """
        key = length, like.device, like.dtype
        if key not in self._made:
            self._made[key] = self._make(length, like)
        return self._made[key]

    def _make(self, length: int, like: Tensor) -> Tensor:
        keys = torch.arange(length, device=like.device)
        queries = torch.arange(self._count, device=like.device)[:, None] + self._past
        seen = (keys <= queries)[None, None]
        bias = torch.zeros((), device=like.device)
        if self._alibi:
            slopes = alibi_slopes(self._heads).to(like.device)[None, :, None, None]
            bias = slopes * (keys - queries)
        if self._mask is not None:
            mask = self._mask.to(like.device)[..., :length]
            if mask.dtype == torch.bool:
                missing = length - mask.shape[-1]  # places of a static cache that are still empty
                seen = seen & F.pad(mask, (0, missing))
            else:
                bias = bias + mask
        # The least number and not -inf: padding before a text sees nothing, and must not be NaN.
        least = torch.finfo(like.dtype).min
        return torch.where(seen, bias.clamp_min(least).to(like.dtype), least)


class BaichuanAttention(nn.Module):
    """Causal attention; queries, keys and values are the rows of one matrix, in this order."""

    def __init__(self, config: BaichuanConfig, number: int):
        super().__init__()
        self.number = number
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.channels
        self.W_pack = nn.Linear(config.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(self.heads * self.channels, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, bias: Bias, angles: tuple[Tensor, Tensor] | None, cache: Any
    ) -> Tensor:
        packed = self.W_pack(x).unflatten(-1, (-1, self.channels)).transpose(1, 2)
        q, k, v = packed.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        share = self.heads // self.kv_heads
        if share > 1:
            k, v = (one.repeat_interleave(share, dim=1) for one in (k, v))
        causal = bias.is_causal(k.shape[2])
        mask = None if causal else bias.of(k.shape[2], q)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class BaichuanLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each after a norm."""

    def __init__(self, config: BaichuanConfig, number: int):
        super().__init__()
        self.self_attn = BaichuanAttention(config, number)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        bias: Bias,
        angles: tuple[Tensor, Tensor] | None,
        cache: Any = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), bias, angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class NormHead(nn.Linear):
    """Logits of rows of unit length. The weight keeps the lengths that training gave its rows."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(self.weight, dim=-1, dtype=torch.float32)
        lengths = lengths.clamp_min(1e-12)
        if self.weight.dtype == torch.float16:  # logits of long raw rows are too large for it
            return F.linear(x, (self.weight / lengths[:, None]).to(x.dtype))
        return (F.linear(x, self.weight) / lengths).to(x.dtype)


class BaichuanPreTrainedModel(PreTrainedModel):
    """What the models below share."""

    config: BaichuanConfig
    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012 - as transformers has it
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, NormHead):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, BaichuanRMSNorm):
            nn.init.ones_(module.weight)


class BaichuanModel(BaichuanPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            BaichuanLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The last hidden states [B, S, D].

        Args:
            attention_mask: see `Bias`.
            position_ids: [B, S]; those after the cache if None. ALiBi needs none.
            past_key_values, cache: keys and values of earlier tokens, by its older and newer name.
        """
        if kwargs.get("output_attentions"):
            raise ValueError("this model gives no attentions")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = cache if cache is not None else past_key_values
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None and not (self.gradient_checkpointing and self.training):
            cache = DynamicCache()
        past = 0 if cache is None else int(cache.get_seq_length())
        bias = Bias(self.config, attention_mask, past, x.shape[1])
        angles = None
        if self.config.position_embedding == "rope":
            if position_ids is None:
                position_ids = torch.arange(x.shape[1], device=x.device)[None] + past
            angles = rotary_angles(position_ids, self.config.head_dim)
        states = [x]
        for layer in self.layers:
            x = layer(x, bias, angles, cache=cache)
            states.append(x)
        states[-1] = x = self.norm(x)
        output_hidden_states = output_hidden_states or self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            **{_CACHE: cache},
        )


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """The decoder and its head."""

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.model = BaichuanModel(config)
        kind = NormHead if config.norm_head else nn.Linear
        self.lm_head = kind(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take another head, such as one of more rows, which stays a NormHead if it was one."""
        if self.config.norm_head and not isinstance(new_embeddings, NormHead):
            rows, width = new_embeddings.weight.shape
            head = NormHead(width, rows, bias=False, device="meta")
            head.weight = new_embeddings.weight
            new_embeddings = head
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, S, V], and the loss of `labels`, which are the same tokens or -100.

        Args:
            logits_to_keep: after so many of the last tokens only; 0: after all. Or which ones.
        """
        found = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
            output_hidden_states, cache,
            output_attentions=kwargs.pop("output_attentions", None),
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.config.norm_head and self.config.z_loss_weight:
                largest = logits[:, :-1].float().amax(-1)
                loss = loss + self.config.z_loss_weight * largest.square().mean()
        made = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=found.hidden_states,
            **{_CACHE: getattr(found, _CACHE)},
        )
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return made if return_dict else made.to_tuple()


class BaichuanForSequenceClassification(BaichuanPreTrainedModel):
    """The decoder, and a score of each text at its last token."""

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        self.score = nn.Linear(config.hidden_size, int(config.num_labels or 1), bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Scores [B, labels], at the last token of each text that fills no row.

        Args:
            labels: [B], what the scores are to be; the loss is the mean square.
        """
        found = self.model(
            input_ids, attention_mask, position_ids, None, None, use_cache or False,
            output_hidden_states, **kwargs,
        )  # fmt: skip
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        if self.config.pad_token_id is None:
            if len(input_ids) > 1:
                raise ValueError("texts of a batch need a pad_token_id in the configuration")
            last = at[-1:]
        else:
            last = (at * (input_ids != self.config.pad_token_id)).argmax(-1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        logits = self.score(found.last_hidden_state[rows, last])
        loss = None
        if labels is not None:
            loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
        made = SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=found.hidden_states
        )
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return made if return_dict else made.to_tuple()
