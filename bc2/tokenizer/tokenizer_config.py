"""Settings of the tokenizer's training."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from bc2.recipe import UNKEYED, Section
from bc2.tokenizer.tokenizer_files import MODEL_FILE

#: The SentencePiece model inside an artifact: what this stage writes.
TOKENIZER_FILE = MODEL_FILE

#: Bounds of settings, which advice must keep too.
LEAST_PIECES, MOST_PIECES = 512, 1_048_576
LEAST_COVERAGE = 0.98


class TokenizerConfig(Section):
    """``[tokenizer]``: how the SentencePiece BPE model is trained (Baichuan 2 §2.3)."""

    section: ClassVar[str] = "tokenizer"

    corpus: str | None = Field(None, json_schema_extra=UNKEYED)
    """Where the training text comes from: a corpus ref, or a recipe that builds one.
    None: this recipe's own corpus."""

    vocab_size: int = Field(125_696, ge=LEAST_PIECES, le=MOST_PIECES)
    """Pieces in all: control pieces, 256 bytes and what BPE learns."""

    character_coverage: float = Field(0.9999, ge=LEAST_COVERAGE, le=1.0)
    """Share of the sample's characters that get a piece; the rest fall back to bytes."""

    max_piece_length: int = Field(32, ge=1, le=128)
    """Longest learned piece, in characters."""

    sample_bytes: int = Field(250_000_000, gt=0, le=20_000_000_000)
    """UTF-8 bytes read into the trainer, which holds them in memory (about 15 bytes each)."""

    weights: dict[str, Annotated[float, Field(ge=0.0, le=1000.0)]] = Field({})
    """Weight of each source of the corpus in the sample, times its size in bytes. A source
    that is not named has weight 1.0, that is, its natural share; 0 leaves a source out."""

    min_used_fraction: float = Field(0.95, gt=0.0, le=1.0, json_schema_extra=UNKEYED)
    """Fail when the trainer used less than this share of the bytes it was given."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the sample. Training itself is deterministic."""
