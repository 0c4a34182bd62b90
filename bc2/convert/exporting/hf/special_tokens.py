"""The special tokens by the names that transformers has for their uses."""

from __future__ import annotations

from bc2.convert.exporting.source_model import SourceModel
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
    return found | {use: given[use] for use in _USES if given.get(use) in tokenizer.special_ids}


def _pad_id(tokenizer: Tokenizer) -> int:
    """What fills rows: never a piece of text, which bc2's own convention of 0 can be."""
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id)
    return next((one for one in ids if _stands_for_no_text(tokenizer, one)), -1)


def _stands_for_no_text(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.has(token) and tokenizer.is_control(token)
