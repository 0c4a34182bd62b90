"""Lines of keys, whatever stands around them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bc2.toml_file import TomlFile


@given(st.integers(0, 20), st.lists(st.sampled_from(["", "# note", "k = [\n 1,\n]"]), max_size=6))
def test_line_of_survives_comments_and_multiline_values(pad: int, before: list[str]) -> None:
    lines = ["[a]", *[f"x{i} = {i}" for i in range(pad)]]
    used = [text.replace("k", f"k{i}") for i, text in enumerate(before)]
    text = "\n".join([*lines, *used, "wanted = [", "  1,", "]", "after = 2"])
    layer = TomlFile(Path("f"), text, tomllib.loads(text))
    line = layer.line_of(("a", "wanted"))
    assert line is not None
    assert text.splitlines()[line - 1] == "wanted = ["
