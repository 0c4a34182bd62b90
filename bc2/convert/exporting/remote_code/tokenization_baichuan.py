"""Baichuan's tokenizer for transformers: a SentencePiece model, and every text kept as it is.

SentencePiece reads U+2581 as a space and refuses lone surrogates; here their bytes are encoded.
"""

from __future__ import annotations

import os
import re
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

_SPACE = "\u2581"
_APART = re.compile(f"[{_SPACE}\ud800-\udfff]+")


class BaichuanTokenizer(PreTrainedTokenizer):
    """No beginning and no end is added to a text.

    Args:
        vocab_file: the SentencePiece model.
        keeps_bytes: whether it neither changes a text nor adds to it, and has all bytes.
        dummy_prefix: whether it puts a space before a text.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 - as transformers has it
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        unk_token: str | None = "<unk>",
        bos_token: str | None = "<s>",
        eos_token: str | None = "</s>",
        pad_token: str | None = "<unk>",
        keeps_bytes: bool = True,
        dummy_prefix: bool = False,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ):
        self.vocab_file = vocab_file
        self.keeps_bytes = keeps_bytes
        self.dummy_prefix = dummy_prefix
        self._sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        ids = list(range(self._sp.get_piece_size()))
        self._pieces: list[str] = self._sp.id_to_piece(ids)
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        bytes_ = [i for i, is_byte in zip(ids, self._sp.is_byte(ids), strict=True) if is_byte]
        self._bytes = {self._pieces[i]: bytes([int(self._pieces[i][1:-1], 16)]) for i in bytes_}
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            keeps_bytes=keeps_bytes,
            dummy_prefix=dummy_prefix,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        if not self.keeps_bytes:
            return self._encoded(text.encode("utf-8", "replace"))
        pieces: list[str] = []
        start = 0
        for match in _APART.finditer(text):
            pieces += self._encoded(text[start : match.start()].encode())
            pieces += [f"<0x{byte:02X}>" for byte in match[0].encode("utf-8", "surrogatepass")]
            start = match.end()
        return pieces + self._encoded(text[start:].encode())

    def _encoded(self, text: bytes) -> list[str]:
        return [self._pieces[i] for i in self._sp.encode(text)]

    def _convert_token_to_id(self, token: str) -> Any:
        return self._ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        if index < 0:
            raise IndexError(f"token id {index} is below 0")
        # A model may have more rows than there are pieces, and say them: they stand for nothing.
        return self._pieces[index] if index < len(self._pieces) else ""

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        if skip_special_tokens:  # also those that no template writes
            known = range(len(self._pieces))
            ids = [i for i in ids if i not in known or not self._sp.is_control(i)]
        return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces; bytes that are no UTF-8 become U+FFFD."""
        joined = b"".join(
            self._bytes.get(one) or one.replace(_SPACE, " ").encode("utf-8", "surrogatepass")
            for one in tokens
        )
        try:
            text = joined.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            text = joined.decode("utf-8", "replace")
        return text[1:] if self.dummy_prefix and text.startswith(" ") else text

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + "tokenizer.model"
        path = os.path.join(save_directory, name)
        with open(path, "wb") as file:
            file.write(self._sp.serialized_model_proto())
        return (path,)
