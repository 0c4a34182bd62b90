"""The fields of a serialized protobuf message, without its classes.

By hand, since the protobuf classes that SentencePiece brings demand a newer runtime than many
environments have.
"""

from __future__ import annotations

from collections.abc import Iterator


def message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: integers; bytes of strings, messages and floats.

    Raises:
        ValueError: a field of a kind that SentencePiece's models do not have.
        IndexError: the message ends inside a field.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        size = _FIXED_SIZES.get(tag & 7)
        if size is None:
            value, position = _varint(message, position)
            if tag & 7 == 0:
                yield tag >> 3, value
                continue
            if tag & 7 != 2:
                raise ValueError(f"unknown wire type {tag & 7} in a protobuf message")
            size = value
        yield tag >> 3, message[position : position + size]
        position += size


#: Bytes of a field by its wire type.
_FIXED_SIZES = {1: 8, 5: 4}


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
