"""Scoring beside an open session, a pass at a time, with a cache that is kept."""

from __future__ import annotations

import random

import pytest
import torch

from bc2.errors import DataError, UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request, Score, ScoreRequest
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

VOCAB = 97


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
        context_length=128,
    )  # fmt: skip
    return Transformer(config).eval()


def engine_of(model: Transformer, blocks: int = 64) -> InferenceEngine:
    bytes_of_block = 2 * 2 * 32 * 4 * 4
    config = EngineConfig(
        cache_bytes=blocks * bytes_of_block, block_tokens=4, step_tokens=64, max_running=8
    )
    return InferenceEngine(model, config, eos_id=0, poison=True)


def texts(seed: int, count: int) -> list[ScoreRequest]:
    draw = random.Random(seed)
    beginnings = [[draw.randrange(1, VOCAB) for _ in range(draw.randrange(1, 40))] for _ in "abc"]
    found = []
    for _ in range(count):
        ids = [*draw.choice(beginnings), *(draw.randrange(1, VOCAB) for _ in range(9))]
        cut = draw.randrange(1, len(ids))
        found.append(ScoreRequest(ids[:cut], ids[cut:]))
    return found


def by_number(passes: list[list[Score]]) -> list[Score]:
    return sorted((one for some in passes for one in some), key=lambda one: one.index)


@pytest.mark.parametrize("blocks", [64, 13])
def test_scores_and_answers_are_those_of_each_alone(model: Transformer, blocks: int) -> None:
    asked = texts(1, 40)
    wanted = list(engine_of(model).score(asked, top_k=3, share=False))
    prompts = [Request(one.context[:20], SamplingConfig(temperature=0, max_new_tokens=12))
               for one in asked[:10]]  # fmt: skip
    alone = [one.continuations[0].ids for one in engine_of(model).generate(prompts)]
    engine = engine_of(model, blocks)
    with engine.open() as session:
        for one in prompts:
            session.submit(one)
        found, answers, jobs = [], {}, [engine.score_passes(asked[i::2], top_k=3) for i in (0, 1)]
        while jobs or not session.idle:
            session.step()
            answers |= {one.index: one.continuations[0].ids for one in session.finished()}
            if jobs:
                job = jobs.pop(0)
                some = next(job, None)
                if some is not None:
                    found.append((job, some))
                    jobs.append(job)
        used = engine.memory.pool
        used.check([])
    assert [answers[at] for at in range(len(prompts))] == alone
    for first in (0, 1):
        job = [jobs_of for jobs_of, _ in found][first]
        scores = by_number([some for other, some in found if other is job])
        for one, other in zip(scores, wanted[first::2], strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert one.greedy == other.greedy
            assert [[i for i, _ in top] for top in one.top] == [
                [i for i, _ in top] for top in other.top
            ]


def test_what_was_scored_is_read_no_second_time(model: Transformer) -> None:
    engine = engine_of(model)
    ids = list(range(1, 41))
    list(engine.score_passes([ScoreRequest(ids[:1], ids[1:])]))
    before = engine.stats.prompt_tokens
    (again,) = next(engine.score_passes([ScoreRequest(ids, [50])]))
    assert engine.stats.prompt_tokens - before == 4  # all but nine blocks of four
    (alone,) = engine_of(model).score([ScoreRequest(ids, [50])])
    assert again.log_probs == pytest.approx(alone.log_probs, abs=1e-6)
    with engine.open() as session:
        session.submit(Request([*ids, 50], SamplingConfig(temperature=0, max_new_tokens=1)))
        before = engine.stats.prompt_tokens
        session.step()
        assert engine.stats.prompt_tokens - before == 1


def test_a_job_that_is_dropped_between_passes_holds_nothing(model: Transformer) -> None:
    engine = engine_of(model)
    job = engine.score_passes(texts(2, 30))
    next(job)
    job.close()  # type: ignore[attr-defined]
    engine.memory.pool.check([])
    assert engine.memory.pool.available == engine.memory.pool.blocks


def test_a_wrong_request_is_refused_before_any_pass(model: Transformer) -> None:
    engine = engine_of(model)
    with pytest.raises(DataError, match="vocabulary"):
        next(engine.score_passes([ScoreRequest([1], [2]), ScoreRequest([1], [VOCAB])]))
    with pytest.raises(UsageError, match="top_k"):
        next(engine.score_passes([ScoreRequest([1], [2])], top_k=VOCAB + 1))
    assert engine.stats.steps == 0
