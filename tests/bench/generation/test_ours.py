"""bc2's engine at the work of each part, beside transformers with the same weights."""

from __future__ import annotations

import pytest
import torch

from bc2.bench.generation.job import Job
from bc2.bench.generation.ours import FAMILY_TOKENS, SAMPLED, SAMPLED_TOKENS, WAYS, Ours
from bc2.bench.generation.outcome import Pair
from bc2.bench.generation.parts import WAYS as NAMED
from bc2.bench.generation.peers import StaticBatches
from bc2.bench.generation.work import ScoredQuestion
from bc2.generate.engine_config import EngineConfig
from bc2.generate.runner import ModelRunner
from bc2.model.model_config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=4,
    context_length=256, initializer_range=0.2,
)  # fmt: skip
JOB = Job(
    kind="bc2", model=SHAPE, seed=5, precision="fp32", device="cpu",
    engine=EngineConfig(cache_bytes=2**22, max_running=4), work="",
)  # fmt: skip


def drawn(count: int) -> list[int]:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(count)).tolist()


PAIRS: list[Pair] = [
    (drawn(prompt), new) for prompt, new in [(5, 9), (40, 1), (31, 33), (2, 20), (64, 12), (17, 3)]
]


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours(JOB)


def test_answers_are_the_peers(ours: Ours) -> None:
    made = ours.decode(PAIRS, 0)
    with torch.inference_mode():
        expected = StaticBatches(JOB, by_answer=False).decode(PAIRS, 8)
    assert made.answers == expected.answers
    # Four run at once, so the last two begin after another has ended.
    assert all(0 < first < made.seconds for first in made.first_s)
    assert min(made.first_s[4:]) > max(made.first_s[:4])


def test_scores_are_the_same_with_shared_beginnings(ours: Ours) -> None:
    beginning = drawn(100)
    questions = [
        ScoredQuestion(context=beginning + drawn(size), choices=[[1], [2], [3], [4]])
        for size in (20, 21)
    ]
    shared, apart = ours.score(questions, True), ours.score(questions, False)
    assert shared["requests"] == apart["requests"] == 8
    assert shared["log_probs"] == pytest.approx(apart["log_probs"], abs=1e-4)
    assert apart["prompt_tokens"] >= 4 * (120 + 121)
    assert shared["prompt_tokens"] < 200
    # A second round finds nothing of the first one's.
    assert ours.score(questions, True)["prompt_tokens"] == shared["prompt_tokens"]


def test_siblings_share_the_prompt(ours: Ours) -> None:
    one, several = ours.family(1), ours.family(3)
    assert one["prompt"] == several["prompt"] == 128
    assert one["prompt_tokens"] == several["prompt_tokens"] == 128
    assert (one["new_tokens"], several["new_tokens"]) == (FAMILY_TOKENS, 3 * FAMILY_TOKENS)
    assert ours.family(3)["prompt_tokens"] == 128


@pytest.mark.parametrize("way", WAYS)
def test_choosing_tokens_is_a_part_of_the_time(ours: Ours, way: str) -> None:
    found = ours.sampling(way)
    assert found["new_tokens"] == SAMPLED * SAMPLED_TOKENS
    assert 0 < found["sample_s"] < found["seconds"]


def test_settling_is_a_part_of_the_time(ours: Ours) -> None:
    found = ours.settle(PAIRS)
    assert found["new_tokens"] == sum(new for _, new in PAIRS)
    assert 0 <= found["settle_s"] < found["seconds"]


def test_the_ways_of_sampling_have_the_names_that_are_asked_for() -> None:
    assert tuple(WAYS) == NAMED


def test_the_passes_of_a_gpu_are_waited_for_where_choosing_tokens_is_timed(
    ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(ours.runner, "device", gpu)
    monkeypatch.setattr(ModelRunner, "next_logits", lambda *given: None)

    def passes(*_: object) -> dict[str, float]:
        ours.runner.next_logits(None, None, None)  # type: ignore[arg-type]
        return {}

    monkeypatch.setattr(ours, "_timed", passes)
    ours.family(2)
    assert waited == []
    ours.sampling("top-p")
    assert waited == [gpu]
    assert not ours.runner.waits
