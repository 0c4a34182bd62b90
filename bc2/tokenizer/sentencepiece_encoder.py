"""SentencePiece models (``tokenizer.model``), trained by bc2 or foreign.

SentencePiece alone is not exact: it reads U+2581 as a space and refuses lone
surrogates. Here those characters are encoded apart, as their bytes, so that for a
model with byte fallback, a piece for the space and without normalisation every `str`
round-trips. Without that piece a space becomes the bytes of U+2581, as in SentencePiece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import sentencepiece

from bc2.errors import DataError
from bc2.tokenizer.encoder import CharacterSpans, Ids
from bc2.tokenizer.layout import PAD_ID, SPACE_MARK
from bc2.tokenizer.protobuf import message_fields

#: Characters that SentencePiece does not keep: its mark for spaces, and lone surrogates.
_APART = re.compile(f"[{SPACE_MARK}\ud800-\udfff]+")
_MARK_BYTES = SPACE_MARK.encode()


class SentencePieceEncoder:
    """An `Encoder` over a serialized SentencePiece model.

    Attributes:
        takes_bytes: whether it has all bytes, and leaves a text as it is: no other characters, no
            dummy prefix.

    Raises:
        DataError: it is none.
    """

    def __init__(self, model: bytes):
        self._sp, table, changes = _load(model)
        self.table: Sequence[bytes | None] = table
        self.vocab_size: int = self._sp.get_piece_size()
        self.unk_id: int = self._sp.unk_id()
        self.bos_id: int = self._sp.bos_id()
        self.eos_id: int = self._sp.eos_id()
        pad = self._sp.pad_id()
        self.pad_id: int = pad if pad >= 0 else PAD_ID
        self.begin_ids: tuple[int, ...] = ()  # nothing in the file says so
        self._byte_ids = self._find_byte_ids()
        self.dummy_prefix = changes["dummy_prefix"]
        self.added: Mapping[str, int] = {}
        self.takes_bytes = bool(self._byte_ids) and not any(changes.values())
        self.exact: bool = self.takes_bytes and self._has_space()

    # -- text to ids

    def encode(self, texts: Sequence[str], threads: int, *, eos: bool) -> list[Ids]:
        """int32 ids of each text; the special ones by `_apart`, the rest in one native call."""
        if len(texts) == 1:
            # A batch of one would start a pool of threads: 230 µs against 2.
            data = _plain(texts[0])
            return [self._apart(texts[0], eos=eos) if data is None else self._one(data, eos=eos)]
        plain = [_plain(text) for text in texts]
        native = [data for data in plain if data is not None]
        arrays = iter(self._native(native, threads, eos=eos))
        return [
            next(arrays) if data is not None else self._apart(text, eos=eos)
            for data, text in zip(plain, texts, strict=True)
        ]

    def _native(self, texts: list[bytes], threads: int, *, eos: bool) -> list[Ids]:
        encoded = self._sp.encode(texts, return_type="numpy", num_threads=threads, add_eos=eos)
        return cast("list[Ids]", encoded)

    def _one(self, text: bytes, *, eos: bool) -> Ids:
        return cast(Ids, self._sp.encode(text, return_type="numpy", add_eos=eos))

    def _apart(self, text: str, *, eos: bool) -> Ids:
        """A text with characters that SentencePiece does not keep: those go as bytes."""
        if not self.takes_bytes:
            # Each part would get the dummy prefix of a foreign model. Surrogates become "?".
            return self._one(text.encode("utf-8", "replace"), eos=eos)
        parts: list[Ids] = []
        start = 0
        for match in _APART.finditer(text):
            parts.append(self._one(text[start : match.start()].encode(), eos=False))
            special = match[0].encode("utf-8", "surrogatepass")
            parts.append(np.array([self._byte_ids[byte] for byte in special], np.int32))
            start = match.end()
        parts.append(self._one(text[start:].encode(), eos=eos))
        return np.concatenate(parts)

    def spans(self, text: str) -> tuple[list[int], CharacterSpans]:
        """The ids of a text and what they cover, as SentencePiece aligns them."""
        plain = text.encode("utf-8", "replace").decode()
        found = cast("dict[str, Any]", self._sp.encode(plain, return_type="offset_mapping"))
        ids, spans = list(found["ids"]), list(found["offsets"])
        for at in range(len(ids) - 2, -1, -1):
            # It gives a character's last byte the whole of it, and the bytes before nothing.
            if spans[at][0] == spans[at][1] == spans[at + 1][0] and self._sp.is_byte(ids[at]):
                spans[at] = spans[at + 1]
        return ids, spans

    # -- the vocabulary

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as the model spells it; None without one."""
        found: int = self._sp.piece_to_id(piece)
        unknown = found == self.unk_id and piece != self.piece_of(self.unk_id)
        return None if unknown else found

    def piece_of(self, token_id: int) -> str:
        """The piece of an id as the model spells it."""
        return self._sp.id_to_piece(token_id)

    def matched_pieces(self) -> Iterator[tuple[str, bool]]:
        """See `Tokenizer.matched_pieces`."""
        ids = list(range(self.vocab_size))
        sp = self._sp
        kinds = zip(sp.is_control(ids), sp.is_unknown(ids), sp.is_byte(ids), strict=True)
        for piece, unmatched, unused in zip(
            sp.id_to_piece(ids), map(any, kinds), sp.is_unused(ids), strict=True
        ):
            if not unmatched:
                yield piece, unused

    def _find_byte_ids(self) -> list[int]:
        """The ids of the 256 bytes, or none if the model does not fall back to bytes."""
        found = [self._sp.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        # The pieces may be there and the fallback off: ask for a character nobody trains on.
        probe = self._sp.encode("\U0010fffe")
        if not all(self._sp.is_byte(found)) or self.unk_id in probe:
            return []
        return found

    def _has_space(self) -> bool:
        """Whether a space has a piece, or is the byte of one; else it comes back as U+2581."""
        return b"".join(self.table[i] or b"" for i in self._one(b" ", eos=False)) == b" "


def _plain(text: str) -> bytes | None:
    """UTF-8 that SentencePiece encodes exactly, or None if the text needs `_apart`."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return None
    return None if _MARK_BYTES in data else data


def _load(
    model: bytes,
) -> tuple[sentencepiece.SentencePieceProcessor, list[bytes], dict[str, bool]]:
    """The native processor of a model, what each id stands for, and `_changes`."""
    # Warnings only repeat what is in the model; errors come as exceptions.
    sentencepiece.set_min_log_level(2)
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        return processor, _table(processor), _changes(model)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"not a SentencePiece model: {reason}", todo="give the tokenizer.model of a tokenizer"
        ) from None


def _table(processor: sentencepiece.SentencePieceProcessor) -> list[bytes]:
    """V byte strings: what each id stands for."""
    ids = list(range(processor.get_piece_size()))
    pieces = processor.id_to_piece(ids)
    table = [piece.replace(SPACE_MARK, " ").encode() for piece in pieces]
    for i, byte in enumerate(processor.is_byte(ids)):
        if byte:
            table[i] = bytes([int(pieces[i][1:-1], 16)])
    for silent in (processor.is_control(ids), processor.is_unknown(ids)):
        for i, is_silent in enumerate(silent):
            if is_silent:
                table[i] = b""
    return table


def _changes(model: bytes) -> dict[str, bool]:
    """How a model changes text before it encodes it."""
    spec = sentencepiece.SentencePieceNormalizer(model_proto=model).serialized_normalizer_spec()
    fields = dict(message_fields(spec))
    return {
        "charsmap": bool(fields.get(2, b"")),
        "dummy_prefix": bool(fields.get(3, True)),
        "extra_whitespace": bool(fields.get(4, True)),
        "unescaped": not fields.get(5, True),
    }
