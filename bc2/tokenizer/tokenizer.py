"""Text to ids and back, exactly, whichever library a vocabulary is made for.

``decode(encode(text)) == text`` for every `str` where the vocabulary allows it (`Tokenizer.exact`).
No text is ever encoded to a control id.

Shapes: V ids, N tokens of D documents.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bc2.errors import DataError, from_os_error
from bc2.tokenizer.encoder import CharacterSpans, Encoder, Ids
from bc2.tokenizer.round_trip import lost_kinds
from bc2.tokenizer.tokenizer_files import JSON_FILE, MODEL_FILE, tokenizer_name

#: What an id without a piece is generated as: no UTF-8, so that it is shown as U+FFFD.
_NO_PIECE = b"\xff"
_SHOWN_NO_PIECE = "\ufffd"


@dataclass(frozen=True)
class Spans:
    """The tokens of a text, and where in the text each one is."""

    ids: list[int]
    characters: CharacterSpans
    """First character that a token holds of, and the one after its last. Tokens that share a
    character overlap."""
    bytes: list[tuple[int, int]]
    """The same in bytes of UTF-8 (WTF-8 for lone surrogates). Of a vocabulary that is `exact` each
    token has its own bytes; else they are those of its characters."""


class Tokenizer:
    """A tokenizer of bc2 or a foreign one; safe to use from many threads.

    Args:
        model: the contents of a ``tokenizer.model`` (SentencePiece) or a ``tokenizer.json``.

    Attributes:
        file_name: what its file is called in an artifact.
        vocab_size: V, one more than the largest id.
        unk_id, bos_id, eos_id, pad_id: special ids; unk, bos and eos are -1 where there is none.
            Padding is the file's own, else 0, Baichuan 2's convention.
        begin_ids: what stands before every whole text: a prompt, a document. As the original
            library has it, which adds it by itself; () where the file says nothing of it.
        lost: kinds of text that do not come back, by their names in `bc2.tokenizer.round_trip`.
        exact: every text round-trips, byte by byte. False for foreign ones that normalise, add a
            dummy prefix or lack byte pieces, and for models without a piece for the space.
        digest: hex SHA-256 of the file.

    Raises:
        DataError: it is neither, or of a kind that is not supported.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.file_name = JSON_FILE if model[:1] == b"{" else MODEL_FILE
        self._encoder = _encoder(model, self.file_name)
        self._table = self._encoder.table
        self.vocab_size: int = self._encoder.vocab_size
        self.unk_id: int = self._encoder.unk_id
        self.bos_id: int = self._encoder.bos_id
        self.eos_id: int = self._encoder.eos_id
        self.pad_id: int = self._encoder.pad_id
        self.begin_ids: tuple[int, ...] = self._encoder.begin_ids
        self.lost: tuple[str, ...] = lost_kinds(lambda text: self.decode(self.encode(text)))
        self.exact: bool = self._encoder.exact and not self.lost
        self.digest: str = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file, or the ``tokenizer.model`` or ``tokenizer.json`` of a directory.

        Raises:
            DataError: no such file, or not a tokenizer.
        """
        path = Path(path)
        try:
            if path.is_dir():
                names = [entry.name for entry in path.iterdir()]
                path = path / (tokenizer_name(names) or MODEL_FILE)
            model = path.read_bytes()
        except OSError as error:
            raise from_os_error(error, "reading a tokenizer") from None
        try:
            return cls(model)
        except DataError as error:
            raise DataError(error.what, where=str(path), todo=error.todo) from None

    @classmethod
    def from_bytes(cls, model: bytes) -> Tokenizer:
        """A tokenizer of a file's contents, such as `bc2.tokenizer.train.Trained.model`."""
        return cls(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_bytes, (self.model,)

    def __len__(self) -> int:
        return self.vocab_size

    # -- text to ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no beginning, no end, and never a control id."""
        (ids,) = self._encoder.encode([text], 1, eos=False)
        return cast("list[int]", ids.tolist())

    def encode_whole(self, text: str) -> list[int]:
        """The ids of a whole text: `begin_ids` and those of `encode`."""
        return [*self.begin_ids, *self.encode(text)]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of many texts at the library's native speed."""
        return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[Ids]:
        """`encode_batch` as int32 arrays (read-only), without Python integers."""
        return self._encoder.encode(texts, threads, eos=False)

    def encode_flat(
        self, texts: Sequence[str], threads: int = 1
    ) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
        """Documents end to end, each between `begin_ids` and EOS, as token shards hold them.

        Where a text begins with EOS itself, that of the document before it is the one.

        Returns:
            tokens: [N] of `dtype`.
            lengths: [D] tokens of each document, its beginning and its EOS included.

        Raises:
            DataError: the model has no EOS.
        """
        if self.eos_id < 0:
            raise DataError("this tokenizer has no end-of-text piece, so it cannot make shards")
        arrays = self._encoder.encode(texts, threads, eos=True)
        begin = np.array([i for i in self.begin_ids if i != self.eos_id], np.int32)
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays)) + len(begin)
        if not arrays:
            return np.empty(0, self.dtype), lengths
        if len(begin):
            arrays = [part for ids in arrays for part in (begin, ids)]
        return np.concatenate(arrays, dtype=self.dtype, casting="unsafe"), lengths

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned integers that hold every id: 16 bits up to 65,536 pieces."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def spans(self, text: str) -> Spans:
        """`encode`, with the place of each token in the text."""
        # [characters + 1] where each character begins, in bytes, and where the text ends.
        sizes = [len(c.encode("utf-8", "surrogatepass")) for c in text]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if not self.exact:
            ids, characters = self._encoder.spans(text)
            return Spans(ids, characters, [(int(starts[a]), int(starts[b])) for a, b in characters])
        ids = self.encode(text)
        ends = np.cumsum(self.piece_bytes[ids], dtype=np.int64)
        begins = ends - self.piece_bytes[ids]
        first = np.searchsorted(starts, begins, side="right") - 1
        last = np.searchsorted(starts, ends, side="left")
        return Spans(
            ids,
            list(zip(first.tolist(), last.tolist(), strict=True)),
            list(zip(begins.tolist(), ends.tolist(), strict=True)),
        )

    # -- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: what `encode` was given, surrogates included.

        Control ids are nothing. Bytes that are no UTF-8 (ids cut inside a character, or
        sampled) become U+FFFD.

        Raises:
            DataError: an id that this vocabulary has not got.
        """
        text = self.decode_bytes(ids).decode("utf-8", _WTF8)
        return text[1:] if self._encoder.dummy_prefix and text.startswith(" ") else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of some ids (WTF-8: UTF-8, and lone surrogates in three bytes).

        Raises:
            DataError: an id that this vocabulary has not got.
        """
        ids = list(ids)
        self._check(ids)
        table = self._table
        return b"".join([cast(bytes, table[i]) for i in ids])

    def generated_bytes(self, ids: Iterable[int]) -> bytes:
        """`decode_bytes` of ids that a model has drawn.

        A model may have more rows than its tokenizer has pieces, and can draw the id of such a
        row: here that is a byte that no UTF-8 has, so that it is shown as U+FFFD.
        """
        return b"".join([self._table[i] or b"" if self.has(i) else _NO_PIECE for i in ids])

    def has(self, token_id: int) -> bool:
        """Whether this vocabulary has an id."""
        return 0 <= token_id < self.vocab_size and self._table[token_id] is not None

    def _check(self, ids: Sequence[int]) -> None:
        within = not ids or (min(ids) >= 0 and max(ids) < self.vocab_size)
        if within and (self._is_dense or all(map(self.has, ids))):
            return
        wrong = next(i for i in ids if not self.has(i))
        raise DataError(
            f"token id {wrong} is outside this vocabulary of {self.vocab_size:,} pieces",
            todo="check that the tokens were made with this tokenizer",
        )

    @cached_property
    def _is_dense(self) -> bool:
        """Whether every id up to the largest has a piece."""
        return None not in self._table

    @cached_property
    def piece_bytes(self) -> npt.NDArray[np.int32]:
        """[V] UTF-8 bytes each id stands for; 0 for control ids. For bits per byte."""
        return np.fromiter((len(piece or b"") for piece in self._table), np.int32, self.vocab_size)

    # -- the vocabulary

    def is_control(self, token_id: int) -> bool:
        """Whether an id stands for no text: control pieces and unknown."""
        self._check([token_id])
        return not self._table[token_id]

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The control ids by their names."""
        ids = [i for i, piece in enumerate(self._table) if piece == b""]
        return {self._encoder.piece_of(i): i for i in ids}

    @property
    def added_ids(self) -> Mapping[str, int]:
        """Tokens by their names that a text is searched for, and that are text themselves."""
        return self._encoder.added

    def id_of(self, piece: str) -> int:
        """The id of a piece as the file spells it (SentencePiece: U+2581 for a space).

        Raises:
            DataError: there is no such piece.
        """
        found = self._encoder.id_of(piece)
        if found is None:
            raise DataError(f"this tokenizer has no piece {piece!r}")
        return found

    def piece_of(self, token_id: int) -> str:
        """The piece of an id as the file spells it."""
        self._check([token_id])
        return self._encoder.piece_of(token_id)

    def shown_piece(self, token_id: int) -> str:
        """`piece_of` an id that a model has drawn: U+FFFD if there is none."""
        return self._encoder.piece_of(token_id) if self.has(token_id) else _SHOWN_NO_PIECE

    def matched_pieces(self) -> Iterator[tuple[str, bool]] | None:
        """Every piece that text is matched with, as the model spells it; whether it is unused.

        An unused piece is matched, then split again. Control, unknown and byte pieces are not
        matched. None if the text is cut by rules before pieces are matched with it, so that they
        do not say where it may be cut.
        """
        return self._encoder.matched_pieces()


def _encoder(model: bytes, file_name: str) -> Encoder:
    """The library that a file is for; only that one is imported."""
    if file_name == JSON_FILE:
        from bc2.tokenizer.json_encoder import JsonEncoder

        return JsonEncoder(model)
    from bc2.tokenizer.sentencepiece_encoder import SentencePieceEncoder

    return SentencePieceEncoder(model)


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
