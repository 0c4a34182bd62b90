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
    def head_dim(self) -> int:
        """Channels K of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def head_rows(self) -> int:
        """Rows of the head's matrix: V of a language head, 1 of a scalar one, or the classes."""
        if self.head == "language":
            return self.vocab_size
        return self.num_classes or 1

    def num_params(self) -> int:
        """The number of all parameters: embedding, layers, norms and the untied head."""
        outer = (self.vocab_size + self.head_rows) * self.hidden_size
        return self.num_params_non_embedding() + outer

    def num_params_non_embedding(self) -> int:
        """The number of parameters without embedding and head, norms included.

        It is N in the scaling laws.

        This is the count that gives the model sizes of Baichuan 2's section 2.6.
        """
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.num_layers * self._layer_matmul_params() + norms

    def flops_per_token(self, sequence_length: int) -> int:
        """Model FLOPs to train on one token, forward and backward.

        PaLM's convention (arXiv 2204.02311, appendix B): 6 FLOPs for each parameter of a
        matrix product, the head's included and the embedding's and norms' not, plus
        12 L D S for attention. The causal half of attention is counted although it can be
        skipped, and recomputation is not counted, so that numbers compare across systems.

        Args:
            sequence_length: S, the length of a document in tokens.
        """
        matmul = self.num_layers * self._layer_matmul_params() + self.head_rows * self.hidden_size
        return 6 * matmul + 12 * self.num_layers * self.hidden_size * sequence_length

    def _layer_matmul_params(self) -> int:
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
