"""Small files of the tokenizers library, as Llama 3, Qwen and Llama 2 have them."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)  # fmt: skip

#: What the two families cut text by.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
    "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
#: Added tokens that are text.
QWEN_ADDED = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<think>", "</think>")

_CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。第12章\n" * 20


def training_texts() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("[a-c]*.py"))]
    return [*texts, _CHINESE, "café naïve \n\n    \t\t👩‍👩‍👧‍👦 🇨🇳\n" * 20]


def _byte_level(
    expression: str, special: Sequence[str], added: Sequence[str], normalizer: Any
) -> bytes:
    made = Tokenizer(models.BPE(ignore_merges=expression is LLAMA3))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        training_texts(),
        trainers.BpeTrainer(
            vocab_size=1200,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in added])
    return made.to_str().encode()


@cache
def llama3_like() -> bytes:
    """Exact: text is encoded as it is. Its post-processor adds a beginning, which bc2 does not."""
    data = json.loads(_byte_level(LLAMA3, LLAMA3_SPECIAL, (), None))
    made = Tokenizer.from_str(json.dumps(data))
    begin = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return made.to_str().encode()


@cache
def qwen_like() -> bytes:
    """It normalises text by NFC, and has added tokens that are text."""
    return _byte_level(QWEN, QWEN_SPECIAL, QWEN_ADDED, normalizers.NFC())


@cache
def llama2_like() -> bytes:
    """Pieces with U+2581 for a space, byte fallback, and a space before each text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    names = ["<unk>", "<s>", "</s>"]
    every = names + [f"<0x{byte:02X}>" for byte in range(256)]
    lines = [line for text in training_texts()[:12] for line in text.split("\n")]
    made.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=900, special_tokens=every, show_progress=False)
    )
    data = json.loads(made.to_str())
    data["added_tokens"] = [one for one in data["added_tokens"] if one["content"] in names]
    return json.dumps(data, ensure_ascii=False).encode()
