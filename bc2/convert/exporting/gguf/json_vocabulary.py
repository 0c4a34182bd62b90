"""A ``tokenizer.json`` as llama.cpp's vocabulary.

Byte-level ones become ``gpt2``: pieces and merges as they are. Those with byte fallback become
``llama``, which tries every pair of pieces that make a piece: so the merges have to name them all,
as they do where they were made from a SentencePiece model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf import TokenType

from bc2.convert.exporting.gguf.pre_tokenizers import pre_tokenizer_name
from bc2.convert.exporting.gguf.vocabulary import Vocabulary, padded, some, typed_pieces
from bc2.errors import UsageError
from bc2.tokenizer.json_spec import read_spec, steps_of
from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.tokenizer import Tokenizer

_MARKS = {"String": " "}, SPACE_MARK

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def json_vocabulary(
    tokenizer: Tokenizer, rows: int, markers: frozenset[int] = frozenset()
) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json``.

    Args:
        rows: of the embedding; ids without a piece get pieces that are not used.
        markers: ordinary pieces that a chat template writes, and llama.cpp has to find there.

    Raises:
        UsageError: llama.cpp cuts or merges text otherwise.
    """
    spec = read_spec(tokenizer.model)
    found: list[str | None] = [None] * tokenizer.vocab_size
    for piece, token in spec["model"]["vocab"].items():
        found[token] = piece
    added = {int(one["id"]): one for one in spec.get("added_tokens") or []}
    for token, one in added.items():
        found[token] = one["content"]
    pieces = padded(found, rows)
    fallback = any(step["type"] == "ByteFallback" for step in steps_of(spec.get("decoder")))
    types = [_type(token, piece, added, fallback) for token, piece in enumerate(found)]
    types += [int(TokenType.UNUSED)] * (rows - len(types))
    if tokenizer.unk_id >= 0:
        types[tokenizer.unk_id] = int(TokenType.UNKNOWN)
    for marker in markers:
        if types[marker] == TokenType.NORMAL:
            types[marker] = int(TokenType.CONTROL)
    if fallback:
        return _merging_by_scores(spec, pieces, types)
    merges = [" ".join(pair) for pair in _merges(spec)]
    notes = tuple(_normalising(spec))
    return Vocabulary("gpt2", pre_tokenizer_name(spec), pieces, types, None, merges, False, notes)


def _type(
    token: int, piece: str | None, added: Mapping[int, Mapping[str, Any]], fallback: bool
) -> int:
    if piece is None:
        return int(TokenType.UNUSED)
    if token in added:
        return int(TokenType.CONTROL if added[token].get("special") else TokenType.USER_DEFINED)
    if fallback and _BYTE.fullmatch(piece):
        return int(TokenType.BYTE)
    return int(TokenType.NORMAL)


def _merges(spec: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for merge in spec["model"]["merges"]:
        yield merge.split(" ") if isinstance(merge, str) else merge


def _normalising(spec: Mapping[str, Any]) -> Iterator[str]:
    kinds = [step["type"] for step in steps_of(spec.get("normalizer"))]
    if kinds:
        yield f"llama.cpp does not normalise text ({', '.join(kinds)}): do it before"


# -- byte fallback ----------------------------------------------------------------------------


def _merging_by_scores(
    spec: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]
) -> Vocabulary:
    ranks = _ranks(spec)
    marked, prefix = _spaces(spec)
    scores = [-float(ranks.get(piece, len(ranks))) for piece in pieces]
    notes = [f"llama.cpp reads {SPACE_MARK!r} (U+2581) in a text as a space"]
    if not marked:
        pieces = _marked(pieces)
    typed = typed_pieces(pieces, types)
    if typed:
        notes.append(f"llama.cpp makes control pieces of text that spells them: {some(typed)}")
    return Vocabulary("llama", "default", pieces, types, scores, (), prefix, tuple(notes))


def _marked(pieces: Sequence[str]) -> list[str]:
    """Pieces with llama.cpp's mark for their spaces."""
    found = [piece.replace(" ", SPACE_MARK) for piece in pieces]
    if len(set(found)) < len(found):
        raise _other_spaces(f"pieces with {SPACE_MARK!r} and with a space")
    return found


def _ranks(spec: Mapping[str, Any]) -> dict[str, int]:
    """By piece the place of its merges among all, which are together.

    Raises:
        UsageError: they are not, or a pair of pieces that makes a piece is no merge.
    """
    pairs: dict[str, set[str]] = {}
    last = None
    for left, right in _merges(spec):
        made = left + right
        if made != last and made in pairs:
            raise _other_merges(made)
        pairs.setdefault(made, set()).add(left)
        last = made
    known = spec["model"]["vocab"].keys()
    for piece in known:
        for at in range(1, len(piece)):
            if (
                piece[:at] in known
                and piece[at:] in known
                and piece[:at] not in pairs.get(piece, ())
                and not _BYTE.fullmatch(piece)
            ):
                raise _other_merges(piece)
    return {piece: rank for rank, piece in enumerate(pairs)}


def _other_merges(piece: str) -> UsageError:
    return UsageError(
        f"llama.cpp merges every pair of pieces that makes {piece!r}, and this tokenizer.json not",
        todo="convert to another format, such as --to llama",
    )


def _spaces(spec: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether spaces are U+2581 in pieces, and whether one is put before each text.

    Raises:
        UsageError: it changes text in another way than llama.cpp.
    """
    prefix = marked = False
    for step in [*steps_of(spec.get("normalizer")), *steps_of(spec.get("pre_tokenizer"))]:
        kind = step["type"]
        if kind == "Prepend" and step.get("prepend") == SPACE_MARK:
            prefix = True
        elif kind == "Replace" and (step.get("pattern"), step.get("content")) == _MARKS:
            marked = True
        elif kind == "Metaspace" and _only_marks(step):
            marked = True
            prefix |= step.get("prepend_scheme", "always") != "never"
        else:
            raise _other_spaces(kind)
    return marked, prefix


def _only_marks(step: Mapping[str, Any]) -> bool:
    """Whether a step cuts nothing."""
    return step.get("replacement") == SPACE_MARK and not step.get("split", True)


def _other_spaces(what: str) -> UsageError:
    return UsageError(
        f"llama.cpp does not change text as this tokenizer.json does: {what}",
        todo="convert to another format, such as --to llama",
    )
