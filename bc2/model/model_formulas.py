"""Formulas over the sizes of a decoder. Imports neither torch nor pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

#: What a model says of a token: logits of the next one, a number, or logits of classes.
HeadKind = Literal["language", "scalar", "classes"]


class ModelFormulas:
    """What follows from the sizes of a model, for any class that has these sizes.

    `bc2.model.model_config.ModelConfig` is one, and says what each size means.
    """

    # For type checkers only: pydantic would take annotations for fields of its own.
    if TYPE_CHECKING:

        @property
        def vocab_size(self) -> int: ...
        @property
        def hidden_size(self) -> int: ...
        @property
        def intermediate_size(self) -> int: ...
        @property
        def num_layers(self) -> int: ...
        @property
        def num_heads(self) -> int: ...
        @property
        def head(self) -> HeadKind: ...
        @property
        def num_classes(self) -> int | None: ...
        @property
        def num_kv_heads(self) -> int | None: ...
        @property
        def head_dim(self) -> int | None: ...
        @property
        def qkv_bias(self) -> bool: ...
        @property
        def qk_norm(self) -> bool: ...
        @property
        def tied(self) -> bool: ...
        @property
        def sliding_window(self) -> int | None: ...

    @property
    def head_size(self) -> int:
        """Channels K of one attention head: `head_dim`, whether it is said or follows."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads G of keys, and of values: `num_kv_heads`, whether it is said or follows."""
        return self.num_kv_heads or self.num_heads

    @property
    def heads_per_key(self) -> int:
        """Query heads that read each key head."""
        return self.num_heads // self.kv_heads

    @property
    def packed_rows(self) -> int:
        """Rows of the matrix of all queries, keys and values: (H + 2 G) K."""
        return (self.num_heads + 2 * self.kv_heads) * self.head_size

    @property
    def head_rows(self) -> int:
        """Rows of the head's matrix: V of a language head, 1 of a scalar one, or the classes."""
        if self.head == "language":
            return self.vocab_size
        return self.num_classes or 1

    @property
    def tied_head(self) -> bool:
        """Whether the head is a language head with the embedding's matrix."""
        return self.tied and self.head == "language"

    @property
    def head_module(self) -> str:
        """The submodule that has the head's matrix, by its name in the model."""
        if self.head != "language":
            return "score"
        return "model.embed_tokens" if self.tied else "lm_head"

    def num_params(self) -> int:
        """The number of all parameters: embedding, layers, norms and the head's own."""
        rows = self.vocab_size + (0 if self.tied_head else self.head_rows)
        return self.num_params_non_embedding() + rows * self.hidden_size

    def num_params_non_embedding(self) -> int:
        """The number of parameters without embedding and head, norms and biases included.

        It is N in the scaling laws.

        This is the count that gives the model sizes of Baichuan 2's section 2.6.
        """
        biases = self.packed_rows if self.qkv_bias else 0
        return self.num_layers * (self._layer_matmul_params() + biases) + self.num_norm_params()

    def num_norm_params(self) -> int:
        """The number of parameters of norms."""
        of_heads = 2 * self.head_size if self.qk_norm else 0
        return (2 * self.num_layers + 1) * self.hidden_size + self.num_layers * of_heads

    def flops_per_token(self, sequence_length: int) -> int:
        """Model FLOPs to train on one token, forward and backward.

        PaLM's convention (arXiv 2204.02311, appendix B): 6 FLOPs for each parameter of a
        matrix product, the head's included and the embedding's and norms' not, plus
        12 L H K S for attention, where H K is usually D. The causal half of attention is counted
        although it can be skipped, and recomputation is not counted, so that numbers compare
        across systems. With a sliding window S is at most its length in this term.

        Args:
            sequence_length: S, the length of a document in tokens.
        """
        matmul = self.num_layers * self._layer_matmul_params() + self.head_rows * self.hidden_size
        seen = min(sequence_length, self.sliding_window or sequence_length)
        return 6 * matmul + 12 * self.num_layers * self.num_heads * self.head_size * seen

    def _layer_matmul_params(self) -> int:
        rows = self.packed_rows + self.num_heads * self.head_size + 3 * self.intermediate_size
        return self.hidden_size * rows
