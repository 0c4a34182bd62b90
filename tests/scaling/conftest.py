"""Synthetic points and registered runs that follow a known law."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.files import sha256_json
from bc2.registry import Artifact, Draft, Kind, Position, Registry
from bc2.scaling.points import Conventions, Points

#: Of each form, what the synthetic points follow.
TRUTH = {
    "power": {"L_inf": 1.7, "a": 1600.0, "b": -0.165},
    "kaplan-n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan-d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan": {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103},
    "chinchilla": {"E": 1.82, "A": 482.0, "alpha": 0.348, "B": 2085.0, "beta": 0.366},
}


def true_loss(form: str, params, tokens, flops):  # type: ignore[no-untyped-def]
    c = TRUTH[form]
    if form == "power":
        return c["L_inf"] + c["a"] * flops ** c["b"]
    if form == "kaplan-n":
        return (c["N_c"] / params) ** c["alpha_N"]
    if form == "kaplan-d":
        return (c["D_c"] / tokens) ** c["alpha_D"]
    if form == "kaplan":
        size = (c["N_c"] / params) ** (c["alpha_N"] / c["alpha_D"])
        return (size + c["D_c"] / tokens) ** c["alpha_D"]
    return c["E"] + c["A"] / params ** c["alpha"] + c["B"] / tokens ** c["beta"]


def make_synthetic(form: str, count: int, noise: float = 0.0, seed: int = 0) -> Points:
    """7 points as of a ladder, or more as of a grid of sizes and tokens a parameter."""
    if count == 7:
        params = np.geomspace(1e7, 3e9, 7)
        ratio = np.array([20, 100, 8, 60, 15, 150, 30.0])
    else:
        params = np.repeat(np.geomspace(1e7, 3e9, 10), count // 10)
        ratio = np.tile(np.geomspace(4, 300, count // 10), 10)
    tokens = params * ratio
    flops = 6 * params * tokens
    errors = np.random.default_rng(seed).standard_normal(count)
    loss = true_loss(form, params, tokens, flops) * np.exp(noise * errors)
    names = tuple(f"run-{number}" for number in range(count))
    return Points(names, params, tokens, flops, loss, Conventions("nats", "total", "6ND"))


@pytest.fixture(scope="session")
def truth() -> dict[str, dict[str, float]]:
    """Form -> coefficients by symbol."""
    return TRUTH


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., Points]:
    """``synthetic(form, count, noise=0.0, seed=0)``: points of a law."""
    return make_synthetic


@pytest.fixture(scope="session")
def law_value() -> Callable[..., float]:
    """``law_value(form, params, tokens, flops)``: the true loss."""
    return true_loss


class FakeRuns:
    """A registry with finished runs that were never trained: what a law reads of them."""

    def __init__(self, home: Path) -> None:
        self.registry = Registry(home)
        self.corpus = self._made("corpus", "text")
        self.tokenizer = self._made("tokenizer", "pieces", self.corpus)
        self.tokens = self._made("tokens", "shards", self.corpus, self.tokenizer)

    def _made(self, kind: Kind, name: str, *parents: Artifact, **others: Any) -> Artifact:
        digests = tuple(parent.digest for parent in parents)
        files = others.pop("files", {"data": name})
        facts = others.pop("facts", {})
        draft = Draft(kind=kind, name=name, key=sha256_json([kind, name, str(others)]),
                      parents=digests, **others)  # fmt: skip
        with self.registry.stage(draft) as staged:
            for path, text in files.items():
                (staged.path / path).write_text(text)
            return staged.publish(facts=facts)

    def other_tokens(self, *, tokenizer: bool = False) -> Artifact:
        """Token shards of another corpus, or of the same corpus by another tokenizer."""
        if tokenizer:
            pieces = self._made("tokenizer", "others", self.corpus)
            return self._made("tokens", "by-others", self.corpus, pieces)
        corpus = self._made("corpus", "other-text")
        return self._made("tokens", "other-shards", corpus, self.tokenizer)

    def run(
        self, name: str, layers: int, batches: int, loss: float, *, seed: int = 0, tag: str = "",
        finished: bool = True, evals: Sequence[float] = (), heldout: str = "aa",
        min_ratio: float = 0.1, tokens: Artifact | None = None, tokenizer: Artifact | None = None,
        facts: dict[str, Any] | None = None, shape: str | None = None,
        section: str = "pretrain", **more: Any,
    ) -> Artifact:  # fmt: skip
        """A run of `batches` steps of 65,536 tokens."""
        model = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192,
                 "num_layers": layers, "num_heads": 2, "context_length": 64}  # fmt: skip
        schedule: dict[str, Any] = {"warmup": "10 steps", "min_ratio": min_ratio}
        if shape is not None:
            schedule["shape"] = shape
        pretrain = {
            "length": f"{batches} steps", "batch_tokens": 65_536, "sequence_length": 64,
            "seed": seed, "schedule": schedule, **more,
        }  # fmt: skip
        recipe = {"name": name, "model": model, section: pretrain, "ladder": {}}
        rows = [{"event": "eval", "heldout_loss": value} for value in (*evals, loss)]
        metrics = "".join(f"{json.dumps(row)}\n" for row in rows)
        measured = {"heldout_loss": loss, "heldout_tokens": 4096, "heldout_sha256": heldout}
        shards = tokens or self.tokens
        made = self._made(
            "checkpoint", name, shards, tokenizer or self.tokenizer, role="base",
            recipe=recipe, finished=finished, position=Position(batches, batches * 65_536),
            files={"metrics.jsonl": metrics}, facts=measured if facts is None else facts,
        )  # fmt: skip
        if tag:
            self.registry.tag(made, tag)
        return self.registry.get(made.digest)

    def ladder(self, count: int = 7, tag: str = "rungs", noise: float = 0.001) -> list[Artifact]:
        """Runs that follow a Chinchilla law, named TAG-0 and so on."""
        rng, made = np.random.default_rng(0), []
        for number in range(count):
            layers = 2 ** (number // 2 + 1) + number
            batches = (100, 900, 250)[number % 3] * (number + 1)
            params = 53_248 * layers + 64 * (2 * layers + 1)
            loss = 1.5 + 40 / params**0.3 + 900 / (batches * 65_536) ** 0.4
            loss *= np.exp(noise * rng.standard_normal())
            made.append(self.run(f"{tag}-{number}", layers, batches, float(loss), tag=tag))
        return made


@pytest.fixture
def fake_runs(tmp_path: Path) -> FakeRuns:
    return FakeRuns(tmp_path / ".bc2")
