"""The peers write what greedy decoding of each prompt by itself writes, in any batches."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from bc2.bench.generation import peers
from bc2.bench.generation.job import Job
from bc2.bench.generation.models import build_llama
from bc2.bench.generation.outcome import Outcome
from bc2.bench.generation.peers import ContinuousBatches, StaticBatches
from bc2.generate.engine_config import EngineConfig
from bc2.model.model_config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=4,
    context_length=256, initializer_range=0.2,
)  # fmt: skip
JOB = Job(
    kind="hf-static", model=SHAPE, seed=5, precision="fp32", device="cpu", engine=EngineConfig(),
    work="",
)  # fmt: skip

#: Lengths of prompts and answers: pages of the cache are filled and crossed.
SIZES = [(5, 9), (40, 1), (31, 33), (2, 20), (64, 12), (17, 3), (100, 40)]
PAIRS = [
    (torch.randint(97, (prompt,), generator=torch.Generator().manual_seed(prompt)).tolist(), new)
    for prompt, new in SIZES
]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Each prompt by itself, from the logits of its whole text alone."""
    model = build_llama(JOB)
    answers = []
    with torch.inference_mode():
        for prompt, new in PAIRS:
            ids = list(prompt)
            for _ in range(new):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            answers.append(ids[len(prompt) :])
    return answers


def decoded(peer: Any, size: int) -> Outcome:
    with torch.inference_mode():
        made: Outcome = peer.decode(PAIRS, size)
    assert all(0 < first <= made.seconds for first in made.first_s)
    return made


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("by_answer", [False, True])
def test_static_batches(expected: list[list[int]], size: int, by_answer: bool) -> None:
    made = decoded(StaticBatches(JOB, by_answer=by_answer), size)
    assert made.answers == expected
    # A batch has its first tokens at once, and one batch comes after another.
    assert len(set(made.first_s)) == -(-len(PAIRS) // size)
    if size == 1:
        order = sorted(range(len(PAIRS)), key=lambda i: SIZES[i][1] if by_answer else i)
        assert [made.first_s[i] for i in order] == sorted(made.first_s)


@pytest.mark.parametrize("size", [2, 16])
def test_continuous_batches(expected: list[list[int]], size: int) -> None:
    peer = ContinuousBatches(JOB)
    assert decoded(peer, size).answers == expected
    # A second round starts from nothing again.
    assert decoded(peer, size).answers == expected


def test_a_request_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def __init__(self, error: str | None):
            self.error = error

        def get_result(self, timeout: float) -> Any:
            return type("Result", (), {"error": self.error})() if self.error else None

        def is_running(self) -> bool:
            return False

    with pytest.raises(RuntimeError, match="no room"):
        list(peers._results(Manager("no room"), 1))
    with pytest.raises(RuntimeError, match="ended"):
        list(peers._results(Manager(None), 1))


def test_the_first_token_is_there_when_the_gpu_has_computed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnGpu:
        """What is asked of ids on a GPU."""

        is_cuda, device = True, torch.device("cpu")

        def __len__(self) -> int:
            return 2

    waited: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "synchronize", lambda device: waited.append(time.perf_counter())
    )
    clock = peers._FirstToken()
    for _ in range(2):
        clock(OnGpu(), None)  # type: ignore[arg-type]
    assert clock.at is not None
    assert len(waited) == 1
    assert waited[0] <= clock.at
