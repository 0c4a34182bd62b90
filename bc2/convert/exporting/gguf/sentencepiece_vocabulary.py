"""A SentencePiece model as llama.cpp's ``llama`` vocabulary: pieces, scores, types.

Both merge the pair whose piece has the highest score, the leftmost first, so that what they encode
is the same. They differ in what is before (normalisation) and in what a text may become.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gguf import TokenType

from bc2.convert.exporting.gguf.vocabulary import Vocabulary, padded, typed_pieces
from bc2.errors import DataError, UsageError
from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.protobuf import message_fields
from bc2.tokenizer.tokenizer import Tokenizer

#: Fields of SentencePiece's ModelProto, and of its TrainerSpec and NormalizerSpec.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BPE = 3, 2
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_WHITESPACE = 2, 3, 4


def sentencepiece_vocabulary(
    tokenizer: Tokenizer, rows: int, markers: frozenset[int] = frozenset()
) -> Vocabulary:
    """The vocabulary of a ``tokenizer.model``.

    Args:
        rows: of the embedding; more than pieces get pieces that are not used.
        markers: ordinary pieces that a chat template writes, and llama.cpp has to find there.

    Raises:
        UsageError: it is no byte-pair encoding, or has no pieces of bytes.
    """
    spec = list(message_fields(tokenizer.model))
    trainer = _message(spec, _TRAINER)
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise UsageError(
            "llama.cpp merges pieces by their scores, and this SentencePiece model is none of "
            "byte-pair encoding (model_type)",
            todo="convert to another format: --to llama",
        )
    found = [_piece(value) for number, value in spec if number == _PIECE]
    pieces = padded([_spelled(piece, kind) for piece, _, kind in found], rows)
    scores = [score for _, score, _ in found] + [-1e4] * (rows - len(found))
    types = [kind for _, _, kind in found] + [int(TokenType.UNUSED)] * (rows - len(found))
    if types.count(TokenType.BYTE) != 256:
        raise UsageError(
            "llama.cpp reads unknown characters as bytes, and this tokenizer has no byte pieces",
            todo="convert to another format: --to llama",
        )
    for marker in markers:
        if types[marker] == TokenType.NORMAL:
            types[marker] = int(TokenType.CONTROL)
    normalizer = _message(spec, _NORMALIZER)
    prefix = bool(normalizer.get(_DUMMY_PREFIX, True))
    notes = tuple(_differences(normalizer, pieces, types, prefix))
    return Vocabulary("llama", "default", pieces, types, scores, (), prefix, notes)


def _message(spec: list[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    return dict(
        message_fields(b"".join(v for n, v in spec if n == number and isinstance(v, bytes)))
    )


def _piece(value: int | bytes) -> tuple[str, float, int]:
    """Text, score and type, whose numbers are GGUF's too."""
    if not isinstance(value, bytes):
        raise DataError("not a SentencePiece model: a piece is no message")
    fields = dict(message_fields(value))
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes)
    assert isinstance(score, bytes)
    return text.decode(), struct.unpack("<f", score)[0], int(fields.get(3, TokenType.NORMAL))


def _spelled(piece: str, kind: int) -> str:
    """Pieces that the user defined are looked for before spaces become U+2581."""
    return piece.replace(SPACE_MARK, " ") if kind == TokenType.USER_DEFINED else piece


def _differences(
    normalizer: dict[int, int | bytes], pieces: list[str], types: list[int], prefix: bool
) -> Iterator[str]:
    """What llama.cpp encodes otherwise, of this tokenizer."""
    yield f"llama.cpp reads {SPACE_MARK!r} (U+2581) in a text as a space"
    if normalizer.get(_CHARSMAP, b""):
        yield "this tokenizer normalises text, and llama.cpp does not: normalise it before"
    if normalizer.get(_EXTRA_WHITESPACE, True):
        yield "this tokenizer leaves out spaces that are several or at an end; llama.cpp keeps them"
    typed = typed_pieces(pieces, types)
    if typed:
        shown = ", ".join(map(repr, typed[:3])) + (" ..." if len(typed) > 3 else "")
        yield f"llama.cpp makes control pieces of text that spells them: {shown}"
    users = [p for p, kind in zip(pieces, types, strict=True) if kind == TokenType.USER_DEFINED]
    if users:
        shown = ", ".join(map(repr, users[:3])) + (" ..." if len(users) > 3 else "")
        after = ", and puts a space after them" if prefix else ""
        yield (
            f"llama.cpp looks for pieces that the user defined the longest first, not the leftmost"
            f"{after}: {shown}"
        )
    if TokenType.UNUSED in types and any(
        kind == TokenType.UNUSED and not piece.startswith("[PAD")
        for piece, kind in zip(pieces, types, strict=True)
    ):
        yield "llama.cpp uses pieces that this tokenizer says are unused"
