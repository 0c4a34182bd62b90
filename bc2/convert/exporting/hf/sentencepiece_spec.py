"""What a SentencePiece model's file says: its pieces, and how it treats text before them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.protobuf import message_fields

#: Kinds of pieces, and of models, by SentencePiece's numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class Piece:
    """A piece; its id is its place in the file."""

    text: str
    score: float
    kind: int

    @property
    def is_matched(self) -> bool:
        """Whether any text becomes it.

        SentencePiece has written each space as its mark before it looks for pieces, and does not
        find one with a NUL.
        """
        normal = self.kind in (NORMAL, USER_DEFINED)
        return normal and " " not in self.text and "\0" not in self.text


@dataclass(frozen=True)
class SentencePieceSpec:
    """A ``tokenizer.model``."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    suffix_space: bool
    """Whether a space belongs to the word before it."""
    charsmap: bool
    """Whether characters are normalised."""
    dummy_prefix: bool
    drops_spaces: bool
    """Whether spaces around a text are dropped, and several become one."""
    escapes_spaces: bool

    @classmethod
    def read(cls, model: bytes) -> SentencePieceSpec:
        """Read a file's contents, which SentencePiece has loaded before."""
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in message_fields(model):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(message_fields(value))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(message_fields(value))
        return cls(
            tuple(pieces),
            model_type=int(trainer.get(3, UNIGRAM)),
            byte_fallback=bool(trainer.get(35, False)),
            suffix_space=bool(trainer.get(24, False)),
            charsmap=bool(normalizer.get(2, b"")),
            dummy_prefix=bool(normalizer.get(3, True)),
            drops_spaces=bool(normalizer.get(4, True)),
            escapes_spaces=bool(normalizer.get(5, True)),
        )

    @cached_property
    def keeps_text(self) -> bool:
        """Whether text reaches the pieces as it is, and every character becomes something."""
        changed = self.charsmap or self.dummy_prefix or self.drops_spaces
        has_space = any(one.text == SPACE_MARK for one in self.pieces)
        return self.escapes_spaces and self.byte_fallback and has_space and not changed

    @property
    def unknown(self) -> str | None:
        """The piece of text that no other one is for."""
        return next((one.text for one in self.pieces if one.kind == UNKNOWN), None)


def _piece(message: bytes) -> Piece:
    fields = dict(message_fields(message))
    text, score, kind = fields.get(1, b""), fields.get(2), fields.get(3, NORMAL)
    assert isinstance(text, bytes)
    number = struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0
    return Piece(text.decode(), number, int(kind))


def with_spaces(text: str) -> str:
    """A piece with its marks as the spaces that they stand for."""
    return text.replace(SPACE_MARK, " ")
