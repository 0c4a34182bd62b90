"""Files of the tokenizers library (``tokenizer.json``): byte-pair encoding of bytes, as GPT-2,
Llama 3 and Qwen have it, or with byte fallback, as Llama 2 and Mistral have it.

The library finds special tokens in any text. Here text never becomes one: the characters of
``<|im_end|>`` stay characters. Added tokens that the file does not call special, such as Qwen 3's
``<think>``, are text, and are found as the library finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from bc2.tokenizer.byte_pieces import Spelling, spelling_of
from bc2.tokenizer.encoder import CharacterSpans, Ids
from bc2.tokenizer.json_spec import begin_ids, no_tokenizer, read_spec
from bc2.tokenizer.layout import PAD_ID

#: Names of special tokens, which the file does not tell the use of; the first that is there counts.
BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
ENDS = (
    "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "<|im_end|>",
)  # fmt: skip
PADS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|endoftext|>")

_SURROGATES = re.compile("[\ud800-\udfff]+")


class JsonEncoder:
    """An `Encoder` over the contents of a ``tokenizer.json``.

    Raises:
        DataError: it is none, or of a kind that is not supported.
    """

    def __init__(self, model: bytes):
        spec = read_spec(model)
        spelling = spelling_of(spec)
        self._native = _load(model)
        self._vocabulary: dict[str, int] = self._native.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocabulary.values(), default=-1) + 1
        added = self._native.get_added_tokens_decoder()
        self.table: Sequence[bytes | None] = _table(
            self._vocabulary, added, spelling, self.vocab_size
        )
        self.added: Mapping[str, int] = {
            str(one.content): token for token, one in added.items() if not one.special
        }
        special = {str(one.content): token for token, one in added.items() if one.special}
        self.bos_id, self.eos_id = (_first(names, special) for names in (BEGINS, ENDS))
        pad = _first(PADS, special)
        self.pad_id: int = pad if pad >= 0 else PAD_ID
        self.unk_id: int = self._vocabulary.get(spec["model"].get("unk_token") or "", -1)
        self.begin_ids = self._begins(spec)
        self.dummy_prefix = spelling.dummy_prefix
        self._byte_ids = [self._vocabulary.get(piece, -1) for piece in spelling.bytes]
        self.exact = spelling.exact and min(self._byte_ids) >= 0 and not _eats_space(added)
        self._typed = self._typed_specials(special)

    # -- text to ids

    def encode(self, texts: Sequence[str], threads: int, *, eos: bool) -> list[Ids]:
        """int32 ids of each text; in more threads than one all that the library wants."""
        end = [self.eos_id] if eos else []
        if threads == 1 or len(texts) == 1:
            # One by one the library starts no threads, which a fork would not survive.
            return [np.array([*self._encode(text), *end], np.int32) for text in texts]
        safe = [i for i, text in enumerate(texts) if not self._is_apart(text)]
        native = self._native.encode_batch_fast([texts[i] for i in safe], add_special_tokens=False)
        known = dict(zip(safe, native, strict=True))
        return [
            np.array([*(known[i].ids if i in known else self._encode(text)), *end], np.int32)
            for i, text in enumerate(texts)
        ]

    def _encode(self, text: str) -> list[int]:
        if not self._is_apart(text):
            return self._plain(text)
        return [token for part in self._uncut(text) for token in self._with_surrogates(part)]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._native.encode(text, add_special_tokens=False).ids
        return ids

    def _is_apart(self, text: str) -> bool:
        """Whether a text holds what the library refuses, or takes for a special token."""
        if self._typed is not None and self._typed.search(text):
            return True
        return not text.isascii() and _SURROGATES.search(text) is not None

    def _uncut(self, text: str) -> Iterator[str]:
        """The parts of a text; a name that would become a special token is cut in two."""
        start = 0
        while self._typed is not None and (found := self._typed.search(text, start)):
            yield text[start : found.start() + 1]
            start = found.start() + 1
        yield text[start:]

    def _with_surrogates(self, text: str) -> Iterator[int]:
        """The ids of a text; surrogates are their bytes, or "?" where bytes do not round-trip."""
        if not self.exact:
            yield from self._plain(_replaced(text))
            return
        start = 0
        for match in _SURROGATES.finditer(text):
            yield from self._plain(text[start : match.start()])
            for byte in match[0].encode("utf-8", "surrogatepass"):
                yield self._byte_ids[byte]
            start = match.end()
        yield from self._plain(text[start:])

    def spans(self, text: str) -> tuple[list[int], CharacterSpans]:
        """The ids of a text and what they cover, as the library says."""
        ids: list[int] = []
        spans: CharacterSpans = []
        start = 0
        for part in self._uncut(text):
            # Each surrogate becomes one "?", so places stay.
            made = self._native.encode(_replaced(part), add_special_tokens=False)
            ids += made.ids
            spans += [(first + start, last + start) for first, last in made.offsets]
            start += len(part)
        return ids, spans

    def _typed_specials(self, special: Mapping[str, int]) -> re.Pattern[str] | None:
        """What finds the names of special tokens that merges alone would make of text."""
        # A name of one character cannot be cut: it is a piece like others.
        names = {name: token for name, token in special.items() if len(name) > 1}
        # A dummy prefix, or what is before it, may keep a name from being merged.
        beside = ("", "a", " ", "\n", ".")
        typed = [n for n, i in names.items() if any(i in self._plain(b + n) for b in beside)]
        return re.compile("|".join(map(re.escape, typed))) if typed else None

    # -- the vocabulary

    def _begins(self, spec: Mapping[str, Any]) -> tuple[int, ...]:
        """What the file puts before each text, all of it in the vocabulary."""
        begins = begin_ids(spec)
        wrong = next((i for i in begins if i >= self.vocab_size or self.table[i] is None), None)
        if wrong is not None:
            raise no_tokenizer(f"its post_processor has the id {wrong}, which no piece has")
        return begins

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as the file spells it; None without one."""
        return self._vocabulary.get(piece)

    def piece_of(self, token_id: int) -> str:
        """The piece of an id as the file spells it."""
        piece: str | None = self._native.id_to_token(token_id)
        assert piece is not None
        return piece

    def matched_pieces(self) -> None:
        """None: expressions cut the text before pieces are matched with it."""
        return None


def _load(model: bytes) -> tokenizers.Tokenizer:
    """The library's tokenizer, without what adds tokens or leaves some out."""
    try:
        native = tokenizers.Tokenizer.from_buffer(model)
    except BaseException as error:
        # Its panics are no `Exception`; a KeyboardInterrupt is not its.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise no_tokenizer(str(error)) from None
        raise
    native.no_truncation()
    native.no_padding()
    native.post_processor = None
    native.encode_special_tokens = True
    return native


def _table(
    vocabulary: Mapping[str, int], added: Mapping[int, Any], spelling: Spelling, size: int
) -> list[bytes | None]:
    """What each id stands for; None for ids that no piece has."""
    table: list[bytes | None] = [None] * size
    for piece, token in vocabulary.items():
        table[token] = spelling.read(piece)
    for token, one in added.items():
        table[token] = b"" if one.special else str(one.content).encode()
    return table


def _replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _first(names: Sequence[str], special: Mapping[str, int]) -> int:
    return next((special[name] for name in names if name in special), -1)


def _eats_space(added: Mapping[int, Any]) -> bool:
    """Whether an added token takes the space beside it, which its bytes do not say."""
    return any(one.lstrip or one.rstrip for one in added.values() if not one.special)
