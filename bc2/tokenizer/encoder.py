"""What `bc2.tokenizer.tokenizer.Tokenizer` needs of a library that encodes text.

Shapes: V ids, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

#: First character of each token's text, and the one after its last.
CharacterSpans = list[tuple[int, int]]


class Encoder(Protocol):
    """A vocabulary, and how text is encoded with it."""

    vocab_size: int
    """V: one more than the largest id."""
    unk_id: int
    bos_id: int
    eos_id: int
    """Special ids; -1 where there is none."""
    pad_id: int
    begin_ids: tuple[int, ...]
    """See `Tokenizer.begin_ids`."""
    exact: bool
    """Whether every text round-trips."""
    dummy_prefix: bool
    """Whether a space is put before each text."""
    added: Mapping[str, int]
    """Tokens that a text is searched for before it is cut into pieces, and are text, by name."""
    table: Sequence[bytes | None]
    """[V] What each id stands for: nothing for control ids; None for ids without a piece."""

    def encode(self, texts: Sequence[str], threads: int, *, eos: bool) -> list[Ids]:
        """The ids [N] of each text, never a control id; with `eos` the end of text after each."""
        ...

    def spans(self, text: str) -> tuple[list[int], CharacterSpans]:
        """The ids [N] of a text, and the characters that each one covers at least in part."""
        ...

    def id_of(self, piece: str) -> int | None: ...

    def piece_of(self, token_id: int) -> str:
        """The piece of an id that has one, as the file spells it."""
        ...

    def matched_pieces(self) -> Iterator[tuple[str, bool]] | None:
        """See `Tokenizer.matched_pieces`."""
        ...
