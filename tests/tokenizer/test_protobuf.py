from __future__ import annotations

import struct

import pytest

from bc2.tokenizer.protobuf import message_fields


def test_fields_of_every_kind_that_models_have() -> None:
    number = bytes([1 << 3 | 0, 0xAC, 0x02])
    text = bytes([2 << 3 | 2, 3]) + b"abc"
    single = bytes([10 << 3 | 5]) + struct.pack("<f", 0.5)
    double = bytes([3 << 3 | 1]) + struct.pack("<d", 0.25)
    found = list(message_fields(number + text + single + double + number))
    assert found == [
        (1, 300),
        (2, b"abc"),
        (10, struct.pack("<f", 0.5)),
        (3, struct.pack("<d", 0.25)),
        (1, 300),
    ]
    assert list(message_fields(b"")) == []


def test_what_is_no_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="wire type 3"):
        list(message_fields(bytes([1 << 3 | 3, 0])))
    with pytest.raises(IndexError):
        list(message_fields(bytes([1 << 3, 0x80])))
