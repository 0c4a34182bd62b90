"""lm-eval's `HFLM`, unchanged, with a tokenizer.json as transformers reads it, for its ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bc2.tokenizer.tokenizer import Tokenizer

Pair = tuple[list[int], list[int]]


def fast_tokenizer(folder: Path, model: bytes, template: str | None = None) -> Any:
    """transformers' tokenizer of the contents of a ``tokenizer.json``, which a folder takes."""
    import transformers

    (folder / "tokenizer.json").write_bytes(model)
    ours = Tokenizer.from_bytes(model)
    ends = {"bos_token": ours.bos_id, "eos_token": ours.eos_id}
    names = {role: ours.piece_of(token) for role, token in ends.items() if token >= 0}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **names
    )
    tokenizer.chat_template = template
    return tokenizer


class TokenizingHFLM(HFLM):
    """The `hf` model of lm-eval with a model that is never run.

    Args:
        folder: takes the file.
        model: the contents of a ``tokenizer.json``.
        template: of chats.
    """

    def __init__(self, folder: Path, model: bytes, template: str | None = None):
        import transformers

        tokenizer = fast_tokenizer(folder, model, template)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1,
        )  # fmt: skip
        super().__init__(
            pretrained=transformers.LlamaForCausalLM(config), tokenizer=tokenizer, batch_size=1
        )
        self._asked: list[Pair] = []

    def _loglikelihood_tokens(self, requests: Sequence[Any], *_: Any, **__: Any) -> Any:
        self._asked += [(context, continuation) for _, context, continuation in requests]
        return []

    def encoded_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """The ids of contexts and continuations that would be scored."""
        self._asked = []
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        self.loglikelihood(requests, disable_tqdm=True)
        return self._asked

    def encoded_prompt(self, text: str) -> list[int]:
        """The ids that would be continued."""
        (ids,), _ = self.tok_batch_encode([text])
        return list(ids.tolist())
