"""The files of a tokenizer for transformers: ``tokenizer.json`` and what is said beside it."""

from __future__ import annotations

import json
from typing import Any

from bc2.convert.exporting.hf.sentencepiece_json import tokenizer_json
from bc2.convert.exporting.hf.special_tokens import special_tokens
from bc2.convert.exporting.source_model import SourceModel
from bc2.tokenizer.tokenizer_files import JSON_FILE, MODEL_FILE


def chat_template(source: SourceModel) -> str | None:
    """The chat layout as a Jinja template; None without one."""
    return source.chat.template if source.chat else None


def hf_texts(source: SourceModel) -> dict[str, bytes]:
    """A tokenizer's files by name, as `transformers.AutoTokenizer` reads them.

    An imported ``tokenizer.json`` goes as it came. A SentencePiece model lies beside the one that
    is made of it.

    Raises:
        UsageError: the tokenizer cannot be written so.
    """
    tokenizer, template = source.tokenizer, chat_template(source)
    found = {JSON_FILE: tokenizer.model}
    if tokenizer.file_name == MODEL_FILE:
        markers = source.chat.markers if source.chat else frozenset()
        found = {JSON_FILE: tokenizer_json(tokenizer.model, markers), MODEL_FILE: tokenizer.model}
    found["tokenizer_config.json"] = _json(_settings(source, template))
    if template is not None:
        found["chat_template.jinja"] = template.encode()
    return found


def _settings(source: SourceModel, template: str | None) -> dict[str, Any]:
    """``tokenizer_config.json``.

    The class is the one that reads ``tokenizer.json`` as it is: transformers 5 gives a Llama's
    own class a pre-tokenizer of its own.
    """
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(source),
        "model_max_length": source.config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if source.tokenizer.file_name == MODEL_FILE:
        settings |= {"add_bos_token": False, "add_eos_token": False}
    if template is not None:
        settings["chat_template"] = template
    return settings


def _json(data: dict[str, Any]) -> bytes:
    return f"{json.dumps(data, indent=2, ensure_ascii=False)}\n".encode()
