"""`bc2 eval --bench text` without a network: figures, what is found again, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2.data.readers import documents_at
from bc2.evaluate.text_likelihood import measure_text
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.load import open_model
from bc2.registry import Registry

pytestmark = pytest.mark.usefixtures("offline")

Bc2 = Callable[..., Any]


def write(path: Path, word: str) -> Path:
    """More documents than a unit of work, in two languages; one is empty."""
    rows = [{"text": f"{word} {number}" * (number % 5), "lang": "en"} for number in range(70)]
    rows += [{"text": f"石子{number}颗", "lang": "zh"} for number in range(3)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_its_figures_are_those_of_all_documents(bc2: Bc2, tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", "stones")
    command = ("eval", "tiny", "--bench", "text", "--data", path, "--json")
    first = bc2(*command).json
    with open_model(Registry.open().resolve("tiny"), torch.device("cpu"), torch.float32) as opened:
        engine = InferenceEngine(
            opened.model, EngineConfig(), eos_id=opened.tokenizer.eos_id,
            decode_bytes=opened.tokenizer.decode_bytes,
        )  # fmt: skip
        expected = measure_text(engine, opened.tokenizer, documents_at([str(path)])).as_json()
    for key in ("window", "stride", "empty_documents"):
        assert first[key] == expected[key]
    for key in ("documents", "tokens", "bytes"):
        assert first["total"][key] == expected["total"][key]
    assert first["total"]["nats"] == pytest.approx(expected["total"]["nats"], rel=1e-6)
    assert list(first["languages"]) == ["en", "zh"]
    again = bc2(*command).json
    assert again == {**first, "made": False}


def test_a_changed_file_is_said_and_another_file_is_not(bc2: Bc2, tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.jsonl", "stones"), write(tmp_path / "b.jsonl", "shells")
    command = ("eval", "tiny", "--bench", "text", "--json", "--data")
    ref = bc2(*command, path).json["ref"]
    assert "are not those of" not in bc2(*command, other).err
    done = bc2(*command, write(path, "pebbles"))
    assert done.json["made"]
    assert f"the rows of text are not those of scores/tiny-text ({ref})" in done.err
