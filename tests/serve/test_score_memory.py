"""What is known of a text by others that begin as it does."""

from __future__ import annotations

import random

import pytest
import torch

from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Score, ScoreRequest
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.serve.lane import Lane
from bc2.serve.score_memory import TEXTS, TOKENS, ScoreMemory, joined, leaders, rest_of
from bc2.serve.ticket import Inbox, Scoring, Ticket

VOCAB = 61


def score_of(count: int, first: float = 0.0) -> Score:
    top = [((number, -1.0), (number + 1, -2.0)) for number in range(count)]
    return Score(
        0, [first - n for n in range(count)], [n % 2 == 0 for n in range(count)], 0, 3, top
    )


def test_what_is_known_and_what_is_left_make_the_whole() -> None:
    memory = ScoreMemory()
    memory.add(ScoreRequest([1], [2, 3, 4, 5]), score_of(4), 2)
    asked = ScoreRequest([1, 2], [3, 4, 9, 9])
    known = memory.known(asked, 1)
    assert known is not None
    assert known.log_probs == [-1.0, -2.0]
    assert known.top == [((1, -1.0),), ((2, -1.0),)]
    rest = rest_of(asked, known)
    assert rest is not None
    assert (list(rest.context), list(rest.continuation)) == ([1, 2, 3, 4], [9, 9])
    whole = joined(7, known, score_of(2, -50.0))
    assert (whole.index, whole.version) == (7, 3)
    assert whole.log_probs == [-1.0, -2.0, -50.0, -51.0]
    assert len(whole.greedy) == len(whole.top) == 4


@pytest.mark.parametrize(
    "asked",
    [
        ScoreRequest([1], [9]),  # another beginning
        ScoreRequest([2], [3, 4]),
        ScoreRequest([1, 2, 3, 4, 5], [6]),  # nothing of it is known
        ScoreRequest([1, 2], [9, 3]),
    ],
)
def test_of_other_texts_nothing_is_known(asked: ScoreRequest) -> None:
    memory = ScoreMemory()
    memory.add(ScoreRequest([1], [2, 3, 4, 5]), score_of(4), 2)
    assert memory.known(asked, 0) is None
    assert rest_of(asked, None) is asked


def test_more_alternatives_or_earlier_places_than_were_asked_for_are_not_known() -> None:
    memory = ScoreMemory()
    memory.add(ScoreRequest([1, 2], [3, 4]), score_of(2), 2)
    assert memory.known(ScoreRequest([1, 2], [3]), 3) is None
    assert memory.known(ScoreRequest([1], [2, 3]), 0) is None
    again = ScoreRequest([1, 2], [3, 4])
    assert rest_of(again, memory.known(again, 2)) is None


def test_the_oldest_texts_are_forgotten() -> None:
    memory = ScoreMemory()
    for number in range(TEXTS + 1):
        memory.add(ScoreRequest([number], [1]), score_of(1), 0)
    assert memory.known(ScoreRequest([0], [1]), 0) is None
    assert memory.known(ScoreRequest([TEXTS], [1]), 0) is not None
    half = TOKENS // 2 + 1
    for start in (1, 2):
        memory.add(ScoreRequest([start], [start] * (half - 1)), score_of(half - 1), 0)
    assert memory.known(ScoreRequest([1], [1, 1]), 0) is None
    assert memory.known(ScoreRequest([2], [2, 2]), 0) is not None


def test_texts_that_begin_alike_have_one_leader() -> None:
    question, other = list(range(20)), list(range(30, 50))
    texts = [[*question, 60], [*other, 1], [*question, 59], [*question, 58], [*other, 2]]
    assert sorted(leaders([ScoreRequest(one[:1], one[1:]) for one in texts])) in ([1, 3], [1, 2, 3])
    assert leaders([]) == []


@pytest.fixture
def engine() -> InferenceEngine:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
        context_length=64,
    )  # fmt: skip
    config_of_engine = EngineConfig(cache_bytes=1 << 18, block_tokens=4, step_tokens=64)
    return InferenceEngine(Transformer(config).eval(), config_of_engine, eos_id=0, poison=True)


def answered(lane: Lane, requests: list[ScoreRequest], top_k: int) -> list[Score]:
    ticket = Ticket(Scoring(requests, top_k), Inbox(), streams=False)
    lane.begin(ticket)
    while lane.busy:
        for told, event in lane.turn():
            assert told is ticket
            assert isinstance(event, list)
            return event
    pytest.fail("no answer came")


@pytest.mark.parametrize("seed", range(3))
def test_scores_from_memory_are_those_of_each_text_alone(
    engine: InferenceEngine, seed: int
) -> None:
    draw = random.Random(seed)
    beginnings = [[draw.randrange(1, VOCAB) for _ in range(24)] for _ in "ab"]
    alone = InferenceEngine(engine.runner, engine.config, eos_id=0)
    lane = Lane(engine)
    for _ in range(6):
        texts = [
            [*draw.choice(beginnings)[: draw.randrange(1, 25)],
             *(draw.randrange(1, VOCAB) for _ in range(draw.randrange(1, 12)))]
            for _ in range(draw.randrange(1, 9))
        ]  # fmt: skip
        cuts = [draw.choice((1, draw.randrange(1, len(one)))) for one in texts]
        requests = [
            ScoreRequest(one[:cut], one[cut:]) for one, cut in zip(texts, cuts, strict=True)
        ]
        top_k = draw.choice((0, 2))
        wanted = list(alone.score(requests, top_k=top_k, share=False))
        found = answered(lane, requests, top_k)
        assert [one.index for one in found] == list(range(len(requests)))
        for one, other in zip(found, wanted, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert one.greedy == other.greedy
            assert [[i for i, _ in top] for top in one.top] == [
                [i for i, _ in top] for top in other.top
            ]
    engine.memory.pool.check([])


def test_a_question_is_read_once_for_all_its_answers(engine: InferenceEngine) -> None:
    question = [number % 60 + 1 for number in range(40)]
    lane = Lane(engine)
    one_by_one = [ScoreRequest(question[:1], [*question[1:], answer]) for answer in (1, 2, 3, 4)]
    for request in one_by_one:
        before = engine.stats.prompt_tokens
        answered(lane, [request], 1)
        read = engine.stats.prompt_tokens - before
    assert read <= engine.config.block_tokens  # of the last one
    other = [number % 59 + 1 for number in range(5, 45)]
    before = engine.stats.prompt_tokens
    answered(lane, [ScoreRequest(other[:1], [*other[1:], answer]) for answer in (1, 2, 3, 4)], 1)
    assert engine.stats.prompt_tokens - before < len(other) + 4 * engine.config.block_tokens
