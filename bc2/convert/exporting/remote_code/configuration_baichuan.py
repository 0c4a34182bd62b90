"""The shape of a Baichuan model: what ``config.json`` says, by the keys of the releases.

Those that the releases have not got, so that any size can be said: `position_embedding`,
`norm_head`, `num_key_value_heads` and `head_dim`.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class BaichuanConfig(PretrainedConfig):
    """A pre-norm decoder with SwiGLU, RMSNorm, and RoPE or ALiBi.

    Args:
        position_embedding: ``rope`` or ``alibi``; where it is not said, RoPE if there are
            `max_position_embeddings`, as in the releases.
        norm_head: whether the head's rows are scaled to unit length in every forward pass; where
            it is not said, if there is a `z_loss_weight`, as in the releases.
        z_loss_weight: of the squared largest logit in the loss.
        model_max_length: tokens of the longest text.
        num_key_value_heads: heads of keys and values; None: as many as of queries.
        head_dim: channels of a head; None: hidden_size / num_attention_heads.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(
        self,
        vocab_size: int = 125_696,
        hidden_size: int = 4096,
        intermediate_size: int = 11_008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        position_embedding: str | None = None,
        max_position_embeddings: int | None = None,
        model_max_length: int | None = None,
        norm_head: bool | None = None,
        z_loss_weight: float | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        if position_embedding is None:
            position_embedding = "rope" if max_position_embeddings else "alibi"
        if position_embedding not in ("rope", "alibi"):
            raise ValueError(f"position_embedding is {position_embedding!r}, not rope or alibi")
        if hidden_act != "silu":
            raise ValueError(f"hidden_act is {hidden_act!r}, not silu")
        if kwargs.setdefault("tie_word_embeddings", False):
            raise ValueError("tie_word_embeddings: Baichuan's head is a matrix of its own")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.position_embedding = position_embedding
        self.model_max_length = model_max_length or max_position_embeddings or 4096
        if position_embedding == "rope":
            self.max_position_embeddings = max_position_embeddings or self.model_max_length
        self.norm_head = z_loss_weight is not None if norm_head is None else norm_head
        if self.norm_head:
            self.z_loss_weight = z_loss_weight or 0
        self.use_cache = use_cache
        super().__init__(**kwargs)
