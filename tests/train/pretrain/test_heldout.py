"""Samples over time: which documents are gone on with, and that they are greedy text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bc2.data.loader import heldout_batches
from bc2.data.shards import TokenShards
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.store import load_model
from bc2.registry import Artifact, Registry
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.pretrain.heldout import PROMPT_TOKENS, WindowsDigest, openings

EOS = 2


def heldout_shards(root: Path, sources: dict[str, list[int]]) -> TokenShards:
    splits: dict[str, dict[str, object]] = {"train": {}, "heldout": {}}
    for source, ids in sources.items():
        file = f"heldout/{source}/shard-00000.bin"
        (root / file).parent.mkdir(parents=True)
        np.array(ids, "<u2").tofile(root / file)
        entry = {"tokens": len(ids), "documents": ids.count(EOS), "bytes": 9}
        splits["heldout"][source] = {**entry, "shards": [{"file": file, **entry}]}
    facts = {"dtype": "<u2", "vocab_size": 100, "eos_id": EOS, "tokenizer": "t", "splits": splits}
    (root / "tokens.json").write_text(json.dumps(facts))
    return TokenShards.open(root)


def test_openings_are_beginnings_of_documents_of_all_sources(tmp_path: Path) -> None:
    first = [EOS, 11, 12, EOS, *[13] * 5000, EOS, 14, 15, 16, 17, EOS, 18, EOS]
    shards = heldout_shards(tmp_path, {"a": first, "b": [21, 22, EOS]})
    # an empty document is passed over; the middle of "a" lies in its long document
    assert openings(shards, 3, 3) == [[11, 12], [21, 22], [14, 15, 16]]
    # near the end of "b" no document begins: the first one again
    assert openings(shards, 4, 3)[1::2] == [[21, 22], [21, 22]]
    assert openings(heldout_shards(tmp_path / "none", {"a": [EOS, EOS]}), 2, 3) == []


def samples(artifact: Artifact) -> list[dict[str, object]]:
    lines = artifact.file("metrics.jsonl").read_bytes().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "sample"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_are_what_the_saved_model_says(train, precision: str) -> None:
    artifact = train(f"pretrain.precision={precision}", "pretrain.sample_tokens=8")
    rows = samples(artifact)
    assert [(row["step"], row["tokens"]) for row in rows] == [
        (step, step * 512) for step in (0, 8, 12) for _ in range(3)
    ]
    registry = Registry.open()
    tokens = next(a for a in registry.parents(artifact) if a.kind == "tokens")
    shards = TokenShards.open(tokens.path)
    pieces = Tokenizer.load(artifact.file("tokenizer.model"))
    prompts = openings(shards, 3, PROMPT_TOKENS)
    assert [row["prompt"] for row in rows[-3:]] == [pieces.decode(ids) for ids in prompts]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = load_model(artifact.path, dtype=dtype)
    settings = SamplingConfig(top_k=1, max_new_tokens=8)
    engine = InferenceEngine(model, eos_id=shards.eos_id)
    made = engine.generate([Request(prompt, settings) for prompt in prompts])
    said = [answer.continuations[0].ids for answer in made]
    texts = [pieces.decode_bytes(ids).decode("utf-8", "replace") for ids in said]
    assert [row["text"] for row in rows[-3:]] == texts
    assert any(texts)


def test_none_are_made_where_none_are_wanted(train) -> None:
    artifact = train("pretrain.sample_prompts=0")
    assert samples(artifact) == []
    assert artifact.finished


def test_sampling_does_not_change_the_training(train, straight) -> None:
    plain = train("pretrain.sample_prompts=0")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert plain.file(name).read_bytes() == straight().file(name).read_bytes()


def windows_sha256(shards: TokenShards, length: int, rows: int, most: int) -> str:
    digest = WindowsDigest()
    for batch in heldout_batches(shards, length, rows, most=most):
        digest.add(batch)
    return digest.hex


def test_the_digest_of_windows_is_of_what_was_read(tmp_path: Path) -> None:
    ids = [*range(3, 60), EOS, *range(20, 50)]
    shards = heldout_shards(tmp_path / "one", {"a": ids, "b": ids[::-1]})
    own = windows_sha256(shards, 8, 1, 6)
    assert {windows_sha256(shards, 8, rows, 6) for rows in (2, 4, 5, 6, 7)} == {own}
    # window by window tokens and labels: the first of "a" is 3 ... 10, and 11 comes after
    first = np.array([range(3, 11), range(4, 12)], "<i8").tobytes()
    assert windows_sha256(shards, 8, 1, 1) == hashlib.sha256(first).hexdigest()
    others = [
        windows_sha256(shards, 8, 1, 5),
        windows_sha256(shards, 7, 1, 6),
        windows_sha256(heldout_shards(tmp_path / "two", {"a": ids, "b": ids}), 8, 1, 6),
    ]
    assert own not in others


def test_a_finished_run_says_which_heldout_tokens_it_read(train) -> None:
    def facts(artifact: Artifact) -> dict[str, Any]:
        return dict(artifact.manifest.facts)

    short = (
        "pretrain.sample_prompts=0",
        "pretrain.length=2 steps",
        "pretrain.schedule.warmup=1 steps",
    )
    plain = train(*short)
    other = train(*short, "pretrain.seed=1", "pretrain.micro_batch=2")
    less = train(*short, "pretrain.seed=2", "pretrain.eval_tokens=1024")
    assert len(facts(plain)["heldout_sha256"]) == 64
    assert facts(other)["heldout_sha256"] == facts(plain)["heldout_sha256"]
    assert facts(other)["heldout_tokens"] == facts(plain)["heldout_tokens"]
    assert facts(less)["heldout_sha256"] != facts(plain)["heldout_sha256"]
    # metrics.jsonl is payload: the digest of what was trained before must not change
    assert b"sha256" not in plain.file("metrics.jsonl").read_bytes()
