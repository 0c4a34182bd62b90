"""Text to ids and back, exactly.

SentencePiece alone is not exact: it reads U+2581 as a space and refuses lone
surrogates. Here those characters are encoded apart, as their bytes, so that for a
model with byte fallback and without normalisation (`Tokenizer.exact`)
``decode(encode(text)) == text`` for every `str`.

Shapes: V pieces, N tokens of D documents.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import sentencepiece

from bc2.errors import DataError, from_os_error
from bc2.tokenizer.layout import PAD_ID, SPACE_MARK
from bc2.tokenizer.protobuf import message_fields

Ids = npt.NDArray[np.int32]

#: What a directory that holds a tokenizer calls the model, as transformers does.
MODEL_FILE = "tokenizer.model"

#: Characters that SentencePiece does not keep: its mark for spaces, and lone surrogates.
_APART = re.compile(f"[{SPACE_MARK}\ud800-\udfff]+")
_MARK_BYTES = SPACE_MARK.encode()


class Tokenizer:
    """A SentencePiece model, trained by bc2 or foreign; safe to use from many threads.

    Attributes:
        vocab_size: V.
        unk_id, bos_id, eos_id, pad_id: special ids; bos and eos are -1 if the model has
            none. Padding is the model's own, else 0, Baichuan 2's convention.
        exact: every text round-trips. False for foreign models that normalise, add a
            dummy prefix or lack byte pieces.
        digest: hex SHA-256 of the model's bytes.
    """

    def __init__(self, model: bytes):
        self.model = model
        self._sp, self._bytes_of, changes = _load(model)
        self.vocab_size: int = self._sp.get_piece_size()
        self.unk_id: int = self._sp.unk_id()
        self.bos_id: int = self._sp.bos_id()
        self.eos_id: int = self._sp.eos_id()
        pad = self._sp.pad_id()
        self.pad_id: int = pad if pad >= 0 else PAD_ID
        self.digest: str = hashlib.sha256(model).hexdigest()
        self._byte_ids = self._find_byte_ids()
        self._dummy_prefix = changes["dummy_prefix"]
        self.exact: bool = bool(self._byte_ids) and not any(changes.values())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file, or the ``tokenizer.model`` of a directory.

        Raises:
            DataError: no such file, or not a SentencePiece model.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MODEL_FILE
        try:
            model = path.read_bytes()
        except OSError as error:
            raise from_os_error(error, "reading a tokenizer") from None
        try:
            return cls(model)
        except DataError as error:
            raise DataError(error.what, where=str(path), todo=error.todo) from None

    @classmethod
    def from_bytes(cls, model: bytes) -> Tokenizer:
        """A tokenizer of a serialized model, such as `bc2.tokenizer.train.Trained.model`."""
        return cls(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_bytes, (self.model,)

    def __len__(self) -> int:
        return self.vocab_size

    # -- text to ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no beginning, no end, and never a control id."""
        data = _plain(text)
        ids = self._apart(text, eos=False) if data is None else self._one(data, eos=False)
        return cast("list[int]", ids.tolist())

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of many texts at SentencePiece's native speed."""
        return [ids.tolist() for ids in self._arrays(texts, threads, eos=False)]

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        """`encode_batch` as int32 arrays (read-only), without Python integers."""
        return self._arrays(texts, threads, eos=False)

    def encode_flat(
        self, texts: Sequence[str], threads: int = 1
    ) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
        """Documents end to end, each followed by EOS, as token shards hold them.

        Returns:
            tokens: [N] of `dtype`.
            lengths: [D] tokens of each document, its EOS included.

        Raises:
            DataError: the model has no EOS.
        """
        if self.eos_id < 0:
            raise DataError("this tokenizer has no end-of-text piece, so it cannot make shards")
        arrays = self._arrays(texts, threads, eos=True)
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
        if not arrays:
            return np.empty(0, self.dtype), lengths
        return np.concatenate(arrays, dtype=self.dtype, casting="unsafe"), lengths

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned integers that hold every id: 16 bits up to 65,536 pieces."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def _arrays(self, texts: Sequence[str], threads: int, *, eos: bool) -> list[Ids]:
        """int32 ids of each text; the special ones by `_apart`, the rest in one native call."""
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
        # A batch of one would start a pool of threads: 230 µs against 2.
        return cast(Ids, self._sp.encode(text, return_type="numpy", add_eos=eos))

    def _apart(self, text: str, *, eos: bool) -> Ids:
        """A text with characters that SentencePiece does not keep: those go as bytes."""
        if not self.exact:
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

    # -- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: what `encode` was given, surrogates included.

        Control ids are nothing. Bytes that are no UTF-8 (ids cut inside a character, or
        sampled) become U+FFFD.

        Raises:
            DataError: an id that this vocabulary has not got.
        """
        text = self.decode_bytes(ids).decode("utf-8", _WTF8)
        return text[1:] if self._dummy_prefix and text.startswith(" ") else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of some ids (WTF-8: UTF-8, and lone surrogates in three bytes)."""
        ids = list(ids)
        self._check(ids)
        table = self._bytes_of
        return b"".join([table[i] for i in ids])

    def _check(self, ids: list[int]) -> None:
        if not ids or (min(ids) >= 0 and max(ids) < self.vocab_size):
            return
        wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
        raise DataError(
            f"token id {wrong} is outside this vocabulary of {self.vocab_size:,} pieces",
            todo="check that the tokens were made with this tokenizer",
        )

    @cached_property
    def piece_bytes(self) -> npt.NDArray[np.int32]:
        """[V] UTF-8 bytes each id stands for; 0 for control ids. For bits per byte."""
        return np.fromiter(map(len, self._bytes_of), np.int32, self.vocab_size)

    # -- the vocabulary

    def is_control(self, token_id: int) -> bool:
        """Whether an id stands for no text: control pieces and unknown."""
        self._check([token_id])
        return bool(self._sp.is_control(token_id) or self._sp.is_unknown(token_id))

    def id_of(self, piece: str) -> int:
        """The id of a piece as the model spells it (U+2581 for a space).

        Raises:
            DataError: there is no such piece.
        """
        found: int = self._sp.piece_to_id(piece)
        if found == self.unk_id and piece != self.piece_of(self.unk_id):
            raise DataError(f"this tokenizer has no piece {piece!r}")
        return found

    def piece_of(self, token_id: int) -> str:
        """The piece of an id as the model spells it."""
        self._check([token_id])
        return self._sp.id_to_piece(token_id)

    def matched_pieces(self) -> Iterator[tuple[str, bool]]:
        """Every piece that text is matched with, as the model spells it; whether it is unused.

        An unused piece is matched, then split again. Control, unknown and byte pieces are not
        matched.
        """
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


def _wtf8(error: UnicodeError) -> tuple[str, int]:
    """Decoding errors: lone surrogates come back, other bytes become U+FFFD."""
    assert isinstance(error, UnicodeDecodeError)
    three = error.object[error.start : error.start + 3]
    try:
        return three.decode("utf-8", "surrogatepass"), error.start + 3
    except UnicodeDecodeError:
        return "\ufffd", error.end


_WTF8 = "bc2-wtf8"
codecs.register_error(_WTF8, _wtf8)
