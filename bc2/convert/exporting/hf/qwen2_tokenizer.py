"""Whether transformers reads a Qwen 2 model's tokenizer as it is.

For the model type ``qwen2`` transformers 5 takes vocabulary and merges out of ``tokenizer.json``,
whatever class is named beside it, and cuts and normalises text as Qwen 2 does.
"""

from __future__ import annotations

import json
from typing import Any

from bc2.errors import UsageError
from bc2.tokenizer.json_spec import steps_of
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import JSON_FILE

#: What Qwen 2 cuts text by.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_qwen2_reads(tokenizer: Tokenizer, asked: str) -> None:
    """Raises: UsageError: transformers would give other ids than this tokenizer."""
    if tokenizer.file_name != JSON_FILE or not _is_qwen2(json.loads(tokenizer.model)):
        raise UsageError(
            "the model has biases of queries, keys and values, which Qwen 2 alone has, and "
            "transformers reads each Qwen 2 with Qwen's own tokenizer, which this is not",
            where=f"--to {asked}",
            todo="write it with --to gguf, or the weights alone with --to safetensors",
        )


def _is_qwen2(spec: dict[str, Any]) -> bool:
    model = spec["model"]
    normalizers = [step["type"] for step in steps_of(spec.get("normalizer"))]
    plain = not model.get("byte_fallback") and not model.get("ignore_merges")
    return plain and normalizers == ["NFC"] and _cuts_alike(list(steps_of(spec["pre_tokenizer"])))


def _cuts_alike(steps: list[Any]) -> bool:
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, level = steps
    isolated = split["behavior"] == "Isolated" and not split.get("invert")
    unspaced = not level.get("add_prefix_space") and level.get("use_regex") is False
    return isolated and unspaced and split["pattern"] == {"Regex": QWEN2_PATTERN}
