"""The contents of a ``tokenizer.json``, checked before the tokenizers library is given them.

The library panics on some files that are damaged or made to harm, and can take the process with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bc2.errors import DataError

#: A file may give any number to a piece; of ids up to it there is a table.
MOST_IDS = 1 << 22

_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")


def read_spec(model: bytes) -> dict[str, Any]:
    """The contents as JSON data.

    Raises:
        DataError: they are none of a tokenizer, or of a kind that is not supported.
    """
    try:
        spec = json.loads(model)
        _check_model(_of(spec, dict)["model"])
        for token in _of(spec.get("added_tokens") or [], list):
            _check_id(_of(token, dict)["id"])
            if not _of(token["content"], str):
                raise ValueError("an added token without content")
        for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
            for step in steps_of(spec.get(key)):
                _of(step["type"], str)
    except (ValueError, KeyError, RecursionError) as error:
        raise no_tokenizer(f"no {error}" if isinstance(error, KeyError) else str(error)) from None
    return dict(spec)


def no_tokenizer(reason: str) -> DataError:
    """The error for contents that are none of a tokenizer."""
    return DataError(
        f"not a tokenizer.json: {' '.join(reason.split())[:200]}",
        todo="give the tokenizer.json of a tokenizer",
    )


def unsupported(why: str) -> DataError:
    """The error for a kind that bc2 does not read."""
    return DataError(
        f"this tokenizer.json is not supported: {why}",
        todo="use one of byte-pair encoding over bytes (Llama 3, Qwen) or with byte fallback "
        "(Llama 2, Mistral), or a SentencePiece tokenizer.model",
    )


def steps_of(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of one of a file's parts, such as its decoder, those of sequences one by one."""
    if step is None:
        return
    for key in _SEQUENCES:
        if key in _of(step, dict):
            for inner in _of(step[key], list):
                yield from steps_of(inner)
            return
    yield step


def begin_ids(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that a file's post-processor puts before each text.

    Raises:
        DataError: it puts some after it, which bc2 does itself where an end belongs; or is of a
            kind that is not known.
    """
    templates = []
    for step in steps_of(spec.get("post_processor")):
        if step["type"] == "TemplateProcessing":
            templates.append(step)
        elif step["type"] != "ByteLevel":  # which changes offsets alone
            raise unsupported(f"its post_processor is {step['type']}")
    if len(templates) > 1:
        raise unsupported("its post_processor has several templates")
    try:
        return _template_begin(templates[0]) if templates else ()
    except (ValueError, KeyError) as error:
        raise no_tokenizer(f"post_processor: {error}") from None


def _template_begin(step: Mapping[str, Any]) -> tuple[int, ...]:
    parts = [next(iter(_of(part, dict).items())) for part in _of(step["single"], list)]
    texts = [at for at, (kind, _) in enumerate(parts) if kind == "Sequence"]
    if len(texts) != 1:
        raise ValueError(f"a template with {len(texts)} places for the text")
    after = [_of(part["id"], str) for _, part in parts[texts[0] + 1 :]]
    if after:
        raise DataError(
            f"this tokenizer.json puts {after[0]} after each text (post_processor)",
            todo="take it out of the template: bc2 adds an end of text where one belongs",
        )
    known = _of(step["special_tokens"], dict)
    ids = [token for _, part in parts[: texts[0]] for token in _of(known[part["id"]]["ids"], list)]
    for token in ids:
        _check_id(token)
    return tuple(ids)


def _check_model(model: Any) -> None:
    kind = _of(model, dict).get("type")
    if kind != "BPE":
        raise unsupported(f"its model is {kind}")
    for marked in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(marked):
            raise unsupported(f"its pieces have a {marked}")
    if model.get("dropout"):
        raise DataError(
            "this tokenizer.json drops merges at random (model.dropout)",
            todo="set dropout to null: encoding has to be repeatable",
        )
    if model.get("unk_token") is not None:
        _of(model["unk_token"], str)
    for token in _of(model["vocab"], dict).values():
        _check_id(token)
    for merge in _of(model["merges"], list):
        pair = merge.split(" ") if isinstance(merge, str) else _of(merge, list)
        if len(pair) != 2 or not all(isinstance(piece, str) and piece for piece in pair):
            raise ValueError(f"a merge of {merge!r}")


def _check_id(token: Any) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ValueError(f"{token!r} for an id")
    if token >= MOST_IDS:
        raise DataError(
            f"this tokenizer.json has the id {token:,} for a piece",
            todo=f"ids are below {MOST_IDS:,}",
        )


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value
