"""The special tokens by the names that transformers has for their uses."""

from __future__ import annotations

from bc2.convert.exporting.source_model import SourceModel
from bc2.errors import UsageError
from bc2.tokenizer.tokenizer import Tokenizer

_USES = ("bos_token", "eos_token", "unk_token", "pad_token")


def special_tokens(source: SourceModel) -> dict[str, str | None]:
    """Names by use, such as ``eos_token``; None where there is none.

    Those that an imported chat template knows count; a name that no id has is left out, since
    transformers would give it a new one behind the table.
    """
    tokenizer = source.tokenizer
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, _pad_id(tokenizer))
    found = {
        use: tokenizer.piece_of(token) if _stands_for_no_text(tokenizer, token) else None
        for use, token in zip(_USES, ids, strict=True)
    }
    given = source.chat.to_json().get("tokens", {}) if source.chat else {}
    found |= {use: given[use] for use in _USES if given.get(use) in tokenizer.special_ids}
    if source.config.head != "language":
        found["pad_token"] = tokenizer.piece_of(_pad_of_scores(source))
    return found


def _pad_of_scores(source: SourceModel) -> int:
    """What fills rows of texts that are scored: transformers reads the last token that is not it.

    So it is none that an answer ends with.

    Raises:
        UsageError: the tokenizer has no such token.
    """
    tokenizer = source.tokenizer
    ends = {tokenizer.eos_id, *(source.chat.end_ids if source.chat else ())}
    for token in (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id):
        if token not in ends and _stands_for_no_text(tokenizer, token):
            return token
    raise UsageError(
        "the tokenizer has no token to fill rows with but those that end an answer, and a "
        "sequence classifier of transformers is read before them",
        where=source.artifact.title,
        todo="write its weights: --to safetensors",
    )


def _pad_id(tokenizer: Tokenizer) -> int:
    """What fills rows: never a piece of text, which bc2's own convention of 0 can be."""
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id)
    return next((one for one in ids if _stands_for_no_text(tokenizer, one)), -1)


def _stands_for_no_text(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.has(token) and tokenizer.is_control(token)
