"""Scores are the model's log-probabilities, however texts are packed and what they share."""

import math
import random

import pytest
import torch

from bc2.errors import DataError, RunFailed, UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import ScoreRequest
from bc2.generate.score import Scorer
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, CONTEXT = 97, 48


def build(dtype=torch.float32, position="rope", norm_head=True):
    config = ModelConfig(
        vocab_size=V,
        hidden_size=24,
        intermediate_size=32,
        num_layers=2,
        num_heads=3,
        context_length=CONTEXT,
        position=position,
        norm_head=norm_head,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return model.to(dtype).requires_grad_(False)


def make_engine(model, blocks=500, **config):
    """An engine whose cache has so many blocks of four tokens."""
    each = 2 * 2 * 24 * 4 * model.lm_head.weight.element_size()
    config = EngineConfig(**{"cache_bytes": each * blocks, "block_tokens": 4, **config})
    return InferenceEngine(model, config, eos_id=0, poison=True)


def requests_of(count, seed=0):
    """Many begin alike, some are there twice, some are the beginning of others."""
    rng = random.Random(seed)
    trunks = [[rng.randrange(V) for _ in range(30)] for _ in range(4)]
    found = []
    for _ in range(count):
        if found and rng.random() < 0.15:
            found.append(rng.choice(found))
            continue
        context = rng.choice(trunks)[: rng.choice([0, 3, 4, 5, 12, 24, 30])]
        context = context + [rng.randrange(V) for _ in range(rng.choice([0, 0, 1, 5]))]
        continuation = [rng.randrange(V) for _ in range(rng.randint(1, 12))]
        found.append(ScoreRequest(context or [rng.randrange(V)], continuation))
        if rng.random() < 0.3:  # the same tokens, cut elsewhere
            text = [*context, *continuation]
            cut = rng.randint(1, max(1, len(text) - 1))
            if text[cut:]:
                found.append(ScoreRequest(text[:cut], text[cut:]))
    return found[:count]


def exact_rows(model, request, cut=0):
    """Log-probabilities [C, V] in place of the continuation's tokens, in fp64."""
    exact = build(torch.float64, model.config.position, model.config.norm_head)
    text = torch.tensor([*request.context, *request.continuation][cut:])
    cu_seqlens = torch.tensor([0, len(text) - 1], dtype=torch.int32)
    logits = exact.logits(exact(text[:-1], cu_seqlens, len(text) - 1))
    return logits.log_softmax(-1)[-len(request.continuation) :]


def check_score(score, index, request, rows, limit):
    assert score.index == index
    labels = torch.tensor(request.continuation)
    expected = rows.gather(1, labels[:, None])[:, 0]
    assert score.log_probs == pytest.approx(expected.tolist(), abs=limit)
    assert score.greedy == (rows.argmax(1) == labels).tolist()
    assert score.total == pytest.approx(float(expected.sum()), abs=limit * len(labels))
    assert score.all_greedy == all(score.greedy)


CONFIGS = [
    {},
    {"window": 7},
    {"window": 1},
    {"step_tokens": 5},
    {"step_tokens": 40, "window": 11},
    {"blocks": 1},
    {"blocks": 6, "step_tokens": 60},
    {"block_tokens": 1, "blocks": 40},
    {"block_tokens": 16},
]


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("norm_head", [True, False])
def test_scores_are_log_softmax_in_float64(position, norm_head):
    model = build(position=position, norm_head=norm_head)
    requests = requests_of(50)
    rows = [exact_rows(model, request) for request in requests]
    assert sum(len(request.continuation) for request in requests) > 200
    for config in CONFIGS:
        for share in (True, False):
            engine = make_engine(model, **config)
            scores = list(engine.score(requests, share=share))
            engine.memory.pool.check([])
            assert len(scores) == len(requests)
            for index, score in enumerate(scores):
                check_score(score, index, requests[index], rows[index], 1e-4)
                assert (score.cut, score.version, score.top) == (0, 0, [])
            assert share or engine.stats.shared_tokens == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_scores_are_the_training_heads(dtype, position):
    """At the same weights, on the packed forward pass of training."""
    model = build(dtype, position)
    requests = requests_of(40, seed=3)
    texts = [[*request.context, *request.continuation] for request in requests]
    lengths = [len(text) - 1 for text in texts]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    tokens = torch.tensor([token for text in texts for token in text[:-1]])
    labels = torch.tensor([token for text in texts for token in text[1:]])
    head = model.lm_head.log_probs(model(tokens, cu_seqlens, max(lengths)), labels, top_k=3)
    for config in ({}, {"window": 7, "step_tokens": 50}, {"blocks": 3}):
        scores = list(make_engine(model, **config).score(requests, top_k=3))
        for score, request, end in zip(scores, requests, cu_seqlens[1:].tolist(), strict=True):
            span = slice(end - len(request.continuation), end)
            assert score.log_probs == pytest.approx(head.log_probs[span].tolist(), abs=1e-5)
            assert score.greedy == head.greedy[span].tolist()
            ids = [[token for token, _ in top] for top in score.top]
            numbers = [number for top in score.top for _, number in top]
            assert ids == head.top_ids[span].tolist()
            assert numbers == pytest.approx(head.top_log_probs[span].flatten().tolist(), abs=1e-5)


def test_scores_in_sixteen_bits_are_near_and_do_not_depend_on_sharing():
    model = build(torch.bfloat16)
    exact = build().bfloat16().double()
    requests = requests_of(40)
    for share in (True, False):
        for request, score in zip(
            requests, make_engine(model).score(requests, share=share), strict=True
        ):
            text = torch.tensor([*request.context, *request.continuation])
            cu_seqlens = torch.tensor([0, len(text) - 1], dtype=torch.int32)
            rows = exact.logits(exact(text[:-1], cu_seqlens, len(text) - 1)).log_softmax(-1)
            labels = torch.tensor(request.continuation)
            expected = rows[-len(labels) :].gather(1, labels[:, None])[:, 0]
            assert score.log_probs == pytest.approx(expected.tolist(), abs=0.2)


def test_common_beginnings_are_read_once():
    """Five texts after a context of 33 tokens: eight blocks of four are read once."""
    model = build()
    context = list(range(33))
    requests = [ScoreRequest(context, [token, token + 1]) for token in range(40, 45)]
    engine = make_engine(model)
    list(engine.score(requests))
    assert engine.stats.prompt_tokens == 34 + 4 * 2
    assert engine.stats.shared_tokens == 4 * 32
    again = make_engine(model)
    list(again.score(requests * 3))  # and what is asked twice is read once
    assert again.stats.prompt_tokens == engine.stats.prompt_tokens
    assert again.stats.steps == 1
    plain = make_engine(model)
    list(plain.score(requests, share=False))
    assert plain.stats.prompt_tokens == 5 * 34


def test_a_text_longer_than_the_window_is_cut_from_the_left_and_counted():
    model = build()
    long = list(range(60))
    requests = [
        ScoreRequest(long, [1, 2, 3]),
        ScoreRequest(long[:46], [1, 2, 3]),
        ScoreRequest(long[:47], [1, 2, 3]),
        ScoreRequest([7], list(range(CONTEXT))),
        ScoreRequest([9, 7], list(range(CONTEXT))),
    ]
    scores = list(make_engine(model).score(requests, cut=True))
    assert [score.cut for score in scores] == [60 + 2 - CONTEXT, 0, 1, 0, 1]
    for index, (score, request) in enumerate(zip(scores, requests, strict=True)):
        check_score(score, index, request, exact_rows(model, request, score.cut), 1e-4)
    for request in (requests[0], requests[2], requests[4]):
        with pytest.raises(DataError, match="the model predicts 49 at most") as info:
            list(make_engine(model).score([requests[1], request]))
        assert info.value.where == "request 1"
    # There must be something to predict the first token from.
    with pytest.raises(DataError, match="51 tokens") as info:
        list(make_engine(model).score([ScoreRequest([9, 7], [1] * (CONTEXT + 1))], cut=True))
    assert info.value.todo == "shorten the continuation"


@pytest.mark.parametrize("top_k", [1, 4, V])
def test_the_likeliest_tokens(top_k):
    model = build()
    requests = requests_of(12, seed=5)
    for request, score in zip(
        requests, make_engine(model).score(requests, top_k=top_k), strict=True
    ):
        rows = exact_rows(model, request)
        assert len(score.top) == len(request.continuation)
        for top, row in zip(score.top, rows, strict=True):
            best = row.sort(descending=True)
            numbers = [number for _, number in top]
            assert numbers == pytest.approx(best.values[:top_k].tolist(), abs=1e-4)
            assert [float(row[token]) for token, _ in top] == pytest.approx(numbers, abs=1e-4)
            assert len({token for token, _ in top}) == top_k


def test_requests_are_read_in_windows():
    pulled = 0

    def many():
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield ScoreRequest([number % V], [3])

    engine = make_engine(build(), window=10)
    scores = engine.score(many())
    assert pulled == 0
    for number, _ in zip(range(35), scores, strict=False):
        assert pulled == 10 * (number // 10 + 1)
    scores.close()
    engine.memory.pool.check([])
    assert list(engine.score([])) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest([], [1]), "the context is empty"),
        (ScoreRequest([1], []), "the continuation is empty"),
        (ScoreRequest([1, V], [1]), f"token id {V} is outside"),
        (ScoreRequest([1], [-1]), "token id -1 is outside"),
        (ScoreRequest([1] * 40, [1] * 10), "the model predicts 49 at most"),
    ],
)
def test_a_wrong_request_is_refused(request_, message):
    engine = make_engine(build())
    good = ScoreRequest([1, 2], [3])
    with pytest.raises(DataError, match=message) as info:
        list(engine.score([good, request_]))
    assert info.value.where == "request 1"
    named = ScoreRequest(request_.context, request_.continuation, where="mmlu.jsonl:4")
    with pytest.raises(DataError) as info:
        list(engine.score([named]))
    assert info.value.where == "mmlu.jsonl:4"
    engine.memory.pool.check([])
    assert len(list(engine.score([good]))) == 1


@pytest.mark.parametrize("top_k", [-1, V + 1])
def test_more_alternatives_than_there_are_tokens(top_k):
    with pytest.raises(UsageError, match=f"top_k is {top_k}"):
        list(make_engine(build()).score([ScoreRequest([1], [2])], top_k=top_k))


def test_a_forward_pass_that_fails_gives_back_its_blocks(monkeypatch):
    engine = make_engine(build())
    requests = requests_of(20)

    def fail(*args):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "log_probs", fail)
        with pytest.raises(ZeroDivisionError):
            list(engine.score(requests))
    engine.memory.pool.check([])
    assert engine.memory.pool.find(requests[0].context, len(requests[0].context)) == []


def test_scores_name_the_weights_that_they_come_from():
    """Also if these change between asking and answering."""
    model = build()
    engine = make_engine(model)
    coming = engine.score([ScoreRequest([1, 2, 3], [4])])
    engine.refresh(5)
    assert next(coming).version == 5


def test_later_windows_name_the_weights_that_they_come_from():
    engine = make_engine(build(), window=1)
    coming = engine.score([ScoreRequest([1, 2, 3], [4]), ScoreRequest([1, 2, 3], [5])])
    assert next(coming).version == 0
    engine.refresh(6)
    assert next(coming).version == 6


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_a_refused_request_comes_after_the_answers_to_those_before_it(window):
    engine = make_engine(build(), window=window)
    good = [ScoreRequest([1, 2], [token]) for token in range(3)]
    found = []
    with pytest.raises(DataError, match="token id 999 is outside") as info:
        found.extend(engine.score([*good, ScoreRequest([1], [999]), *good]))
    assert [score.index for score in found] == [0, 1, 2]
    assert info.value.where == "request 3"
    found = []

    def broken():
        yield from good
        raise DataError("a damaged file")

    with pytest.raises(DataError, match="a damaged file"):
        found.extend(engine.score(broken()))
    assert [score.index for score in found] == [0, 1, 2]


def test_an_interruption_between_texts_leaves_no_block_to_be_found(monkeypatch):
    """Of the texts that were prepared no key has been written."""
    engine = make_engine(build())
    context = list(range(33))
    requests = [ScoreRequest(context, [token, 1]) for token in range(4)]
    row, calls = Scorer._row, 0

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return row(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "_row", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.score(requests))
    engine.memory.pool.check([])
    assert engine.memory.pool.find(context, len(context)) == []


def test_a_model_without_numbers_has_no_scores():
    model = build()
    model.model.norm.weight.fill_(math.nan)
    with pytest.raises(RunFailed, match="not numbers"):
        list(make_engine(model).score([ScoreRequest([1], [2])]))
