from __future__ import annotations

from bc2.tokenizer import layout
from bc2.tokenizer.tokenizer import Tokenizer


def test_turn_markers_have_the_released_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_of("<reserved_106>") == 195 == layout.USER_ID
    assert tokenizer.id_of("<reserved_107>") == 196 == layout.ASSISTANT_ID


def test_ids_stand_as_the_table_says(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 0)
    assert [tokenizer.piece_of(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    named = [tokenizer.piece_of(i) for i in range(3, 197)]
    assert named == list(layout.CONTROL_PIECES)
    assert tokenizer.id_of("<reserved_0>") == 89
    assert [tokenizer.piece_of(197 + b) for b in range(256)] == [f"<0x{b:02X}>" for b in range(256)]
    assert layout.FIXED_PIECES == 453
    assert [i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)] == list(range(197))
