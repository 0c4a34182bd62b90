"""The stage that trains: what it refuses of the inputs that it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2 import recipe
from bc2.errors import RecipeError
from bc2.pipeline.session import Session
from bc2.registry import Registry


def test_a_model_with_fewer_rows_than_the_tokenizer_has_pieces(small: Path) -> None:
    """Known before the run where the recipe makes the tokenizer, and here where it names tokens."""
    registry = Registry.open()
    (tokens,) = registry.list("tokens")
    pieces = json.loads(tokens.file("tokens.json").read_text())["vocab_size"]
    text = (small / "small.toml").read_text()
    text = text[text.index("[model]") :].replace("[pretrain]", '[pretrain]\ntokens = "small"')
    (small / "named.toml").write_text(f'name = "named"\n{text}')
    loaded = recipe.load("named.toml", [f"model.vocab_size={pieces - 1}"])
    with pytest.raises(RecipeError, match=f"smaller than the {pieces} pieces") as caught:
        Session(registry).obtain("checkpoint", loaded, command=["bc2"])
    assert caught.value.todo == f"set model.vocab_size = {pieces}"
    assert registry.list("checkpoint") == []
