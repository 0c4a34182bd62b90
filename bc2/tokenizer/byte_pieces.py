"""How a ``tokenizer.json`` spells bytes in its pieces, and whether it encodes text as it is.

Two spellings are known. *Byte level*: each byte is a printable character, GPT-2's table. *Byte
fallback*: pieces are text with U+2581 for a space, and ``<0x0A>`` is a byte, as in SentencePiece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bc2.tokenizer.json_spec import steps_of, unsupported
from bc2.tokenizer.layout import SPACE_MARK

_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Spelling:
    """How pieces are spelled."""

    read: Callable[[str], bytes]
    """The bytes of a piece."""
    bytes: Sequence[str]
    """[256] the pieces of single bytes."""
    exact: bool
    """Whether text is encoded unchanged, if all bytes have pieces."""
    dummy_prefix: bool
    """Whether a space is put before each text."""


def spelling_of(spec: Mapping[str, Any]) -> Spelling:
    """The spelling of a ``tokenizer.json``, from `read_spec`.

    Raises:
        DataError: it is of another kind; names it.
    """
    decoders = {step["type"] for step in steps_of(spec.get("decoder"))}
    before = list(steps_of(spec.get("pre_tokenizer")))
    if "ByteLevel" in decoders and any(step["type"] == "ByteLevel" for step in before):
        unchanged = spec.get("normalizer") is None and all(map(_keeps_text, before))
        spaced = any(step.get("add_prefix_space") for step in before)
        return Spelling(read_byte_level, BYTE_CHARACTERS, unchanged and not spaced, spaced)
    if "ByteFallback" in decoders:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        # Pieces with real spaces need neither; those of Llama 2 have U+2581 put into the text.
        unchanged = spec.get("normalizer") is None and not before and "Strip" not in decoders
        return Spelling(_read_byte_fallback, names, unchanged, dummy_prefix="Strip" in decoders)
    raise unsupported(f"its decoder is {', '.join(sorted(decoders)) or 'none'}")


def _keeps_text(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer only cuts text."""
    if step["type"] in ("Split", "Punctuation"):
        return step.get("behavior") != "Removed"
    return step["type"] in ("ByteLevel", "Digits", "UnicodeScripts", "FixedLength")


def _byte_characters() -> list[str]:
    """[256] GPT-2's character of each byte: itself if it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def read_byte_level(piece: str) -> bytes:
    """The bytes of a byte-level piece; one with other characters is text, as the library has it."""
    try:
        return bytes([_BYTE_OF[character] for character in piece])
    except KeyError:
        return piece.encode()


def _read_byte_fallback(piece: str) -> bytes:
    if match := _BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace(SPACE_MARK, " ").encode()
