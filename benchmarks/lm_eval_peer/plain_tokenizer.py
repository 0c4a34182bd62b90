"""bc2's tokenizer with the methods of transformers' that lm-eval's `hf` model calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bc2.tokenizer.tokenizer import Tokenizer


class PlainTokenizer:
    """Ids are those of `Tokenizer.encode`: nothing is put before or after them."""

    name_or_path = "bc2"
    bos_token = None  # only read to find it at the beginning of prompts
    padding_side = "right"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.pad_token_id = tokenizer.pad_id
        self.bos_token_id = tokenizer.bos_id if tokenizer.bos_id >= 0 else None
        self.eos_token_id = tokenizer.eos_id

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        ids = [ids] if isinstance(ids, int) else list(ids)
        if skip_special_tokens:
            return self.tokenizer.decode(ids)
        return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")

    def batch_decode(self, batch: Tensor) -> list[str]:
        return [self.decode(ids) for ids in batch.tolist()]

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """[texts, longest] ids, padded on `padding_side`, and the mask of what is no padding."""
        encoded = self.tokenizer.encode_batch(texts)
        longest = max(map(len, encoded))
        ids = torch.full((len(texts), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(encoded):
            place = slice(longest - len(one), None) if self._left else slice(len(one))
            ids[row, place] = torch.tensor(one, dtype=torch.int64)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def _left(self) -> bool:
        return self.padding_side == "left"

    def _bytes(self, token_id: int) -> bytes:
        if self.tokenizer.is_control(token_id):
            return self.tokenizer.piece_of(token_id).encode()
        return self.tokenizer.decode_bytes([token_id])
