"""A SentencePiece model as a ``tokenizer.json`` that gives the same ids.

SentencePiece merges the two neighbours that give the piece with the best score, the leftmost of
equals. The tokenizers library takes pairs in the order of a list. So pairs are listed by the score
of what they give; of pieces with equal scores the longest comes first, since merging from the left
SentencePiece goes on with the piece that it has just made.

What the library cannot do: join a character that is no piece itself with its neighbour, which
SentencePiece does where the two are one. Tokenizers that it trains have no such pieces.

Two spellings. A model that keeps text as it is has pieces with *real spaces* and no normalizer, so
that U+2581 in a text stays itself, which becomes its bytes, as in bc2. Others have SentencePiece's
mark in their pieces, and the library puts it into the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from bc2.convert.exporting.hf.sentencepiece_spec import (
    BPE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceSpec,
    with_spaces,
)
from bc2.errors import UsageError
from bc2.tokenizer.layout import SPACE_MARK


def tokenizer_json(model: bytes, markers: frozenset[int] = frozenset()) -> bytes:
    """The ``tokenizer.json`` for a ``tokenizer.model``.

    Args:
        markers: ordinary pieces that a chat layout takes for control tokens.

    Raises:
        UsageError: the model encodes in a way that the library has not got.
    """
    spec = SentencePieceSpec.read(model)
    _check(spec)
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(spec, markers)),
        "normalizer": _normalizer(spec),
        "pre_tokenizer": _pre_tokenizer(spec),
        "post_processor": None,
        "decoder": _decoder(spec),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": spec.unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": spec.byte_fallback,
            "ignore_merges": bool(_cut_out(spec)),
            "vocab": _vocabulary(spec),
            "merges": list(_merges(spec)),
        },
    }
    return json.dumps(made, ensure_ascii=False).encode()


def _check(spec: SentencePieceSpec) -> None:
    """Raises: UsageError: see `tokenizer_json`."""
    why = None
    if spec.model_type != BPE:
        why = "its pieces are no merges of pairs (byte-pair encoding)"
    elif any(piece.kind == UNUSED for piece in spec.pieces):
        why = "it has unused pieces, which are merged and then split again"
    elif spec.charsmap:
        why = "it normalises characters, which the library does otherwise, a cluster at a time"
    elif spec.suffix_space:
        why = "its words end with a space instead of beginning with one"
    elif _cut_out(spec) and not spec.dummy_prefix:
        # Without a prefix the text <0x0A> would be the piece of that byte, see `_pre_tokenizer`.
        why = "it has user-defined pieces and changes text without putting a space before it"
    if why is not None:
        raise UsageError(
            f"the tokenizer cannot be written as tokenizer.json: {why}",
            where="tokenizer.model",
            todo="write the model with --to baichuan, which reads tokenizer.model itself",
        )


# -- pieces ---------------------------------------------------------------------------------


def _vocabulary(spec: SentencePieceSpec) -> dict[str, int]:
    """Ids by spelling. What no text becomes keeps its marks, so that it is not found either.

    A single character could not but be found: such a piece, of NUL, is left out.
    """
    found = {}
    for token, piece in enumerate(spec.pieces):
        if piece.kind not in (NORMAL, USER_DEFINED):
            found[piece.text] = token
        elif piece.is_matched:
            found[_spelled(spec, piece)] = token
        elif len(piece.text) > 1:
            found[piece.text.replace(" ", SPACE_MARK)] = token
    return found


def _spelled(spec: SentencePieceSpec, piece: Piece) -> str:
    return with_spaces(piece.text) if spec.keeps_text else piece.text


def _merges(spec: SentencePieceSpec) -> Iterator[tuple[str, str]]:
    """Pairs of pieces that give a piece, the first to be merged first."""
    normal = {
        _spelled(spec, piece): (-piece.score, -len(piece.text), token)
        for token, piece in enumerate(spec.pieces)
        if piece.kind == NORMAL and piece.is_matched
    }
    for whole in sorted(normal, key=lambda text: normal[text]):
        for at in range(1, len(whole)):
            pair = whole[:at], whole[at:]
            if pair[0] in normal and pair[1] in normal:
                yield pair


def _added(spec: SentencePieceSpec, markers: frozenset[int]) -> Iterator[dict[str, Any]]:
    """Tokens that text is searched for before anything is merged.

    Control tokens are special. A user-defined piece is text that is never merged with other text;
    where a prefix is put before each stretch of text it is not here, but cut out: see
    `_pre_tokenizer`.
    """
    for token, piece in enumerate(spec.pieces):
        special = piece.kind in (UNKNOWN, CONTROL) or token in markers
        whole = piece.kind == USER_DEFINED and piece.is_matched and spec.keeps_text
        if special or whole:
            yield {
                "id": token,
                "content": piece.text if special else _spelled(spec, piece),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }


def _cut_out(spec: SentencePieceSpec) -> list[str]:
    """User-defined pieces of a model that changes text, the longest first."""
    if spec.keeps_text:
        return []
    found = [one.text for one in spec.pieces if one.kind == USER_DEFINED and one.is_matched]
    return sorted(found, key=len, reverse=True)


# -- text before and after ------------------------------------------------------------------


def _normalizer(spec: SentencePieceSpec) -> dict[str, Any] | None:
    """What SentencePiece does to spaces, in its order."""
    if spec.keeps_text:
        return None
    steps: list[dict[str, Any]] = []
    if spec.drops_spaces:
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    mark = SPACE_MARK if spec.escapes_spaces else " "
    if spec.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": mark})
    if spec.escapes_spaces:
        steps.append(_replace({"String": " "}, SPACE_MARK))
    if spec.drops_spaces:
        steps.append(_replace({"Regex": rf"{mark}+\z"}, ""))
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _pre_tokenizer(spec: SentencePieceSpec) -> dict[str, Any] | None:
    """Cuts out user-defined pieces, which are then found whole: a text that is a piece is it.

    No other text is: each begins with the mark of a space, and merging finds the pieces with one.
    """
    pieces = _cut_out(spec)
    if not pieces:
        return None
    pattern = {"Regex": "|".join(map(re.escape, pieces))}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _decoder(spec: SentencePieceSpec) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE_MARK}, " ")]
    if spec.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if spec.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
