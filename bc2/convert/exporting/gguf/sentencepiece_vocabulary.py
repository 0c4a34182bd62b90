"""A SentencePiece model as llama.cpp's ``llama`` vocabulary: pieces, scores, types.

Both merge the pair whose piece has the highest score, the leftmost first, so that what they encode
is the same. They differ in what is before (normalisation) and in what a text may become.
"""

from __future__ import annotations

from collections.abc import Iterator

from gguf import TokenType

from bc2.convert.exporting.gguf.vocabulary import Vocabulary, padded, some, typed_pieces
from bc2.convert.exporting.hf.sentencepiece_spec import (
    BPE,
    BYTE,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceSpec,
    with_spaces,
)
from bc2.errors import UsageError
from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.tokenizer import Tokenizer

#: Of rows without a piece.
_UNLIKELY = -1e4


def sentencepiece_vocabulary(
    tokenizer: Tokenizer, rows: int, markers: frozenset[int] = frozenset()
) -> Vocabulary:
    """The vocabulary of a ``tokenizer.model``.

    Args:
        rows: of the embedding; more than pieces get pieces that are not used.
        markers: ordinary pieces that a chat template writes, and llama.cpp has to find there.

    Raises:
        UsageError: llama.cpp does not encode so.
    """
    spec = SentencePieceSpec.read(tokenizer.model)
    _check(spec)
    beyond = rows - len(spec.pieces)
    pieces = padded([_spelled(piece) for piece in spec.pieces], rows)
    scores = [piece.score for piece in spec.pieces] + [_UNLIKELY] * beyond
    # SentencePiece's numbers of kinds are GGUF's.
    types = [piece.kind for piece in spec.pieces] + [int(TokenType.UNUSED)] * beyond
    for marker in markers:
        if types[marker] == NORMAL:
            types[marker] = int(TokenType.CONTROL)
    notes = tuple(_differences(spec, typed_pieces(pieces, types)))
    return Vocabulary("llama", "default", pieces, types, scores, (), spec.dummy_prefix, notes)


def _check(spec: SentencePieceSpec) -> None:
    why = None
    if spec.model_type != BPE:
        why = "merges pieces by their scores, and this SentencePiece model has no merges (BPE)"
    elif sum(piece.kind == BYTE for piece in spec.pieces) != 256 or not spec.byte_fallback:
        why = "reads unknown characters as bytes, and this tokenizer does not"
    elif spec.suffix_space or not spec.escapes_spaces:
        why = f"writes {SPACE_MARK!r} for a space, before a word, and this tokenizer does not"
    if why is not None:
        raise UsageError(
            f"llama.cpp {why}",
            where="tokenizer.model",
            todo="convert to another format, such as --to llama or --to baichuan",
        )


def _spelled(piece: Piece) -> str:
    """Pieces that the user defined are looked for before spaces become U+2581."""
    return with_spaces(piece.text) if piece.kind == USER_DEFINED else piece.text


def _differences(spec: SentencePieceSpec, typed: list[str]) -> Iterator[str]:
    """What llama.cpp encodes otherwise, of this tokenizer."""
    yield f"llama.cpp reads {SPACE_MARK!r} (U+2581) in a text as a space"
    if spec.charsmap:
        yield "this tokenizer normalises text, and llama.cpp does not: normalise it before"
    if spec.drops_spaces:
        yield "this tokenizer leaves out spaces that are several or at an end; llama.cpp keeps them"
    if typed:
        yield f"llama.cpp makes control pieces of text that spells them: {some(typed)}"
    users = [_spelled(piece) for piece in spec.pieces if piece.kind == USER_DEFINED]
    if users:
        after = ", and puts a space after them" if spec.dummy_prefix else ""
        yield (
            "llama.cpp looks for pieces that the user defined the longest first, not the leftmost"
            f"{after}: {some(users)}"
        )
    if any(piece.kind == UNUSED for piece in spec.pieces):
        yield "llama.cpp uses pieces that this tokenizer says are unused"
