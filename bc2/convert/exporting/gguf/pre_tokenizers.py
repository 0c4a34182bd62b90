"""How a ``tokenizer.json`` cuts text before it merges, by llama.cpp's names for it.

llama.cpp has the expressions in its source and takes a name. So each is recognised here by what the
file itself says; a name by a guess would give other ids without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bc2.errors import UsageError
from bc2.tokenizer.json_spec import steps_of

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    rf"\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

#: What cuts, step by step; whether whole words that are pieces are taken without merging.
_KNOWN: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_TEKKEN,), True): "tekken",
}


def pre_tokenizer_name(spec: Mapping[str, Any]) -> str:
    """llama.cpp's name of what cuts text in a byte-level ``tokenizer.json``.

    Raises:
        UsageError: it has none for it.
    """
    steps = tuple(
        step for one in steps_of(spec.get("pre_tokenizer")) if (step := _step(one)) is not None
    )
    whole = bool(spec["model"].get("ignore_merges"))
    name = _KNOWN.get((steps, whole))
    if name is None:
        raise UsageError(
            f"llama.cpp does not cut text as this tokenizer.json does: {_shown(steps)}"
            + (", with ignore_merges" if whole else ""),
            todo="convert to another format, such as --to llama",
        )
    return name


def _step(step: Mapping[str, Any]) -> str | None:
    """What a step cuts by; None: it cuts nothing."""
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return "words" if step.get("use_regex", True) else None
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    isolated = str(step.get("behavior", "")).lower() == "isolated" and not step.get("invert")
    pattern = step.get("pattern")
    if step["type"] == "Split" and isolated and isinstance(pattern, dict) and "Regex" in pattern:
        return str(pattern["Regex"])
    return f"{step['type']} {sorted(step.items())}"


def _shown(steps: Sequence[str]) -> str:
    return " then ".join(steps)[:160] or "it does not cut it"
