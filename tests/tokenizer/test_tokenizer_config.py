from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from bc2.tokenizer.tokenizer_config import TokenizerConfig


def test_the_defaults_are_the_papers() -> None:
    config = TokenizerConfig()
    assert config.vocab_size == 125_696
    assert config.character_coverage == 0.9999
    assert config.max_piece_length == 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 100},
        {"vocab_size": 8192.0},
        {"character_coverage": 1.1},
        {"character_coverage": 0.0},
        {"max_piece_length": 0},
        {"sample_bytes": 0},
        {"min_used_fraction": 0.0},
        {"weights": {"code": -1.0}},
        {"seed": -1},
        {"vocab": 8192},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TokenizerConfig.model_validate(wrong)


def test_the_config_is_cheap_to_import() -> None:
    code = (
        "import sys, bc2.tokenizer.tokenizer_config;"
        "print([m for m in ('torch', 'sentencepiece', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
