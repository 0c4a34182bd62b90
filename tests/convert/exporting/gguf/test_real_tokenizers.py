"""What llama.cpp's server makes of texts, with tokenizers as they were released; run for real."""

from __future__ import annotations

import dataclasses
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import made_json_tokenizers
import pytest
from small_checkpoints import checkpoint, shape

from bc2.convert.exporting.gguf.plan import FILE, plan_gguf
from bc2.convert.exporting.hf.sentencepiece_json import tokenizer_json
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.proof.hard_texts import strings
from bc2.convert.proof.llama_server import find_server, open_server
from bc2.registry import Registry
from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_server() is None, reason="llama-server is not installed"),
]

MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"

#: Of 10,000 strings that have neither U+2581 nor a surrogate those that are read otherwise, at
#: most. Baichuan 2's has 2,310 pieces that its makers defined, InternLM's the pieces "<s" and ">".
RELEASED = {"llama2_sp": 0, "baichuan7b_sp_rebuilt": 0, "internlm_sp": 30, "baichuan_sp": 150}


def read(tokenizer: Tokenizer, texts: Sequence[str], folder: Path) -> list[list[int] | None]:
    """The ids of texts by llama.cpp, of a model that has nothing but the tokenizer."""
    small = shape(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_heads=2, num_layers=1,
        intermediate_size=32,
    )  # fmt: skip
    artifact = checkpoint(Registry.open(folder / "home"), small)
    with SourceModel.open(artifact) as source:
        source = dataclasses.replace(source, tokenizer=tokenizer)
        plan = plan_gguf(source, "fp16", 1)
        plan.write(folder, source, plan, lambda count: None)
    with open_server(folder / FILE) as server:
        return server.encode(texts)


def drawn(tokenizer: Tokenizer, count: int = 10_000) -> list[str]:
    """Strings cut from code and Chinese, and hard ones."""
    texts = made_json_tokenizers.training_texts()
    found = strings(texts, [*tokenizer.special_ids, *tokenizer.added_ids], count, 1)
    return [text for text in found if _whole(text)]


def _whole(text: str) -> bool:
    return SPACE_MARK not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def differences(tokenizer: Tokenizer, folder: Path) -> list[str]:
    texts = drawn(tokenizer)
    theirs = read(tokenizer, texts, folder)
    ours = tokenizer.encode_batch(texts)
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


@pytest.mark.parametrize("name", RELEASED)
def test_sentencepiece_as_released(name: str, tmp_path: Path) -> None:
    path = MODELS / name / "tokenizer.model"
    if not path.exists():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    found = differences(Tokenizer.load(path), tmp_path)
    assert len(found) <= RELEASED[name], found[:5]
    if name == "internlm_sp":
        assert all("<s>" in text for text in found)


def test_llama3_and_a_way_through_tokenizer_json(tmp_path: Path) -> None:
    assert differences(Tokenizer(made_json_tokenizers.llama3_like()), tmp_path / "a") == []
    path = MODELS / "llama2_sp" / "tokenizer.model"
    if not path.exists():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    other = Tokenizer(tokenizer_json(path.read_bytes()))
    assert differences(other, tmp_path / "b") == []


def test_what_is_normalised_or_taken_for_control_alone_differs(tmp_path: Path) -> None:
    """Qwen's texts are put into NFC before; llama.cpp does not, and knows tokens by their names."""
    import unicodedata

    found = differences(Tokenizer(made_json_tokenizers.qwen_like()), tmp_path)
    other = [text for text in found if "<|fim_prefix|>" not in text]
    assert 0 < len(other) < len(found)
    assert [text for text in other if unicodedata.normalize("NFC", text) == text] == []


def test_this_python_is_read_whole(tmp_path: Path) -> None:
    """Long texts too."""
    tokenizer = Tokenizer(made_json_tokenizers.llama3_like())
    texts = [
        path.read_text("utf-8")
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("d*.py"))[:5]
    ]
    assert read(tokenizer, texts, tmp_path) == tokenizer.encode_batch(texts)
