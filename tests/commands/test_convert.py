"""`bc2 convert`: what it refuses before it reads a weight, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bc2.cli import main


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The exit code and stderr of ``bc2 convert ARGUMENTS`` in an empty home."""
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["convert", *arguments])
        code = ended.value.code
        assert isinstance(code, int)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["m"], 2, "no format is named"),
        (["m", "--to", "lama"], 2, "did you mean 'llama'?"),
        (["m", "--to", "onnx"], 2, "there are: baichuan, llama"),
        (["m", "--to", "llama", "--dtype", "bf61"], 2, "did you mean 'bf16'?"),
        (["m", "--to", "llama", "--dtype", "q8_0"], 2, "llama has no q8_0"),
        (["m", "--to", "gguf", "--quantize", "nf4"], 2, "--dtype q8_0 is llama.cpp's own"),
        (["m", "--to", "llama", "--quantize", "int4"], 2, "did you mean 'int8'?"),
        (["m", "--to", "llama", "--proof", "tensor"], 2, "did you mean 'tensors'?"),
        (["m", "--to", "llama", "--proof", "tensors", "--no-proof"], 2, "leave one of them out"),
        (["m", "--to", "llama", "--no-proof", "--proof-text", "x"], 2, "full proof alone"),
        (["m", "--to", "llama", "--optimizer"], 2, "--to safetensors keeps it"),
        (["m", "--to", "llama", "--max-shard-size", "big"], 2, "cannot read 'big'"),
        (["m", "--to", "llama"], 4, "m"),
        (["--to", "llama"], 4, "checkpoint"),
    ],
)
def test_wrong_options(
    refused: Callable[..., tuple[int, str]], arguments: list[str], code: int, said: str
) -> None:
    ended, err = refused(*arguments)
    assert ended == code
    assert said in err


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--list", "--quiet"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == [
        "baichuan", "llama", "mistral", "qwen2", "qwen3", "gguf", "safetensors",
    ]  # fmt: skip
