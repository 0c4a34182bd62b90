"""Whatever comes and goes beside it, a request gets the answer that it gets alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bc2.errors import DataError, UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.live import Live
from bc2.generate.near_ties import canonical_choice
from bc2.generate.requests import Request, ScoreRequest
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling.token_groups import Draw
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, EOS, CONTEXT = 67, 66, 40

LETTERS = [chr(65 + i % 26).encode() for i in range(V)]


def letters(tokens):
    return b"".join(LETTERS[token] for token in tokens)


def build(dtype=torch.float32, position="rope", seed=0):
    config = ModelConfig(
        vocab_size=V,
        hidden_size=24,
        intermediate_size=32,
        num_layers=2,
        num_heads=3,
        context_length=CONTEXT,
        position=position,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # with ordinary weights it would repeat one token
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return model.to(dtype)


def make_engine(model, blocks=200, **config):
    """An engine whose cache has so many blocks of four tokens."""
    each = 2 * 2 * 24 * 4 * model.lm_head.weight.element_size()
    config = EngineConfig(**{"cache_bytes": each * blocks, "block_tokens": 4, **config})
    return InferenceEngine(model, config, eos_id=EOS, decode_bytes=letters, poison=True)


def alone(model, request):
    """The continuations of a request, each token by the canonical pass over it alone."""
    runner = ModelRunner(model)
    found = []
    settings = request.settings
    ends = (EOS,) if settings.stop_ids is None else settings.stop_ids
    for number in range(settings.n):
        live = Live(0, number, request, letters)
        while live.reason is None:
            draw = Draw(settings, live.key, live.new, live.seen)
            live.push(int(canonical_choice(runner, live.ids, draw).ids), ends, CONTEXT)
        found.append(live.result())
    return found


SAMPLED = [
    {},
    {"temperature": 0.8, "top_k": 9},
    {"top_p": 0.7, "stop_ids": (3, 5, 8, 13, 40)},
    {"min_p": 0.1, "repetition_penalty": 1.3},
    {"n": 3, "top_k": 30, "top_p": 0.9},
    {"n": 2, "temperature": 1.4, "stop": ("AB", "Q")},
]
GREEDY = [
    {},
    {"repetition_penalty": 1.5},
    {"stop_ids": tuple(range(0, V, 4))},
    {"n": 2, "stop": ("C", "G", "FF")},
]


def catalogue(count, sampled):
    """Requests that begin alike in part, long and short."""
    rng = random.Random(count)
    trunks = [[rng.randrange(V - 1) for _ in range(26)] for _ in range(3)]
    found = []
    for number in range(count):
        cut = rng.choice([0, 4, 8, 9, 16, 25])
        tail = [rng.randrange(V - 1) for _ in range(rng.randint(1, 8))]
        prompt = rng.choice(trunks)[:cut] + tail
        rules = [{"temperature": 0.0, **rule} for rule in GREEDY]
        if sampled and number % 2:
            rules = SAMPLED
        settings = SamplingConfig(
            seed=number,
            max_new_tokens=rng.randint(1, 16),
            logprobs=2,
            **rules[number // 2 % len(rules)],
        )
        found.append(Request(prompt, settings))
    return found


def with_arrivals(engine, requests, seed):
    """Requests come in a random order at random steps, and some are cancelled on the way.

    Returns:
        The answer to each, and which were cancelled.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(requests)), len(requests))
    numbers, answers, cancelled = {}, {}, set()
    with engine.open() as session:
        while order or not session.idle:
            while order and rng.random() < 0.6:
                at = order.pop()
                numbers[session.submit(requests[at])] = at
            if rng.random() < 0.15 and numbers:
                index = rng.choice(list(numbers))
                if numbers[index] not in answers:
                    session.cancel(index)
                    cancelled.add(numbers[index])
            session.step()
            engine.memory.pool.check([live.blocks for live in session._running])
            for answer in session.finished():
                answers[numbers[answer.index]] = answer
    return answers, cancelled


def check_answer(answer, expected, cancelled):
    for one, right in zip(answer.continuations, expected, strict=True):
        assert len(one.log_probs) == len(one.ids)
        if one.finish_reason == "cancelled":
            assert cancelled
            assert one.ids == right.ids[: len(one.ids)]
        else:
            assert (one.ids, one.finish_reason) == (right.ids, right.finish_reason)
            assert one.data == right.data
            assert (one.end_log_prob is not None) == (one.finish_reason == "stop_id")


def check_nothing_is_held(engine):
    engine.memory.pool.check([])
    wide = engine._near_ties._wide
    if wide is not None:
        wide.memory.pool.check([])


def check_orders(dtype, position, orders, *, count, blocks):
    model = build(dtype, position)
    requests = catalogue(count, sampled=dtype != torch.bfloat16)
    expected = [alone(model, request) for request in requests]
    assert {one.finish_reason for each in expected for one in each} == {"stop_id", "stop", "length"}
    preempted = 0
    for seed in orders:
        config = random.Random(seed).choice([{}, {"step_tokens": 7}, {"max_running": 3}])
        engine = make_engine(model, blocks, **config)
        answers, cancelled = with_arrivals(engine, requests, seed)
        assert answers.keys() == set(range(count))
        for at, answer in answers.items():
            check_answer(answer, expected[at], at in cancelled)
        check_nothing_is_held(engine)
        preempted += engine.stats.preemptions
    assert preempted > 0


@pytest.mark.parametrize(
    ("dtype", "position"),
    [(torch.float32, "rope"), (torch.float32, "alibi"), (torch.bfloat16, "rope")],
    ids=str,
)
def test_random_arrivals_and_cancellations_in_a_small_cache(dtype, position):
    check_orders(dtype, position, range(2), count=14, blocks=13)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fifty_random_arrivals_and_cancellations(dtype, position):
    for blocks in (12, 20):
        check_orders(dtype, position, range(100, 150), count=40, blocks=blocks)


# --------------------------------------------------------------------------------- same bits


def answers_of(engine, requests):
    return [(one.index, one.continuations) for one in engine.generate(requests)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_same_submissions_and_cache_give_the_same_bits(dtype):
    """Log-probabilities too, with preemption, whatever the engine did before."""
    model = build(dtype)
    requests = catalogue(12, sampled=True)
    engine = make_engine(model, blocks=11)
    first = answers_of(engine, requests)
    assert engine.stats.preemptions > 0
    assert any(one.log_probs for _, each in first for one in each)
    assert answers_of(make_engine(model, blocks=11), requests) == first
    assert answers_of(engine, requests) == first
    coming = engine.generate(reversed(requests))
    next(coming)
    coming.close()
    check_nothing_is_held(engine)
    with engine.open() as session:  # what was cancelled while it waited leaves nothing either
        for request in requests:
            session.submit(request)
        for _ in range(12):
            session.step()
        for index in range(len(requests)):
            session.cancel(index)
    check_nothing_is_held(engine)
    assert answers_of(engine, requests) == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_log_probabilities_are_the_models(dtype):
    """Raw ones are those of the forward pass over the whole text; drawn ones of greedy are 0."""
    model = build(dtype)
    exact = build(torch.float64).requires_grad_(False)
    exact.load_state_dict({name: weight.double() for name, weight in model.state_dict().items()})
    requests = [
        Request(
            [5, 9, 2], SamplingConfig(temperature=t, max_new_tokens=12, logprobs=3, stop_ids=())
        )
        for t in (0.0, 0.7)
    ]
    for answer in make_engine(model).generate(requests):
        (one,) = answer.continuations
        text = torch.tensor([5, 9, 2, *one.ids])
        cu_seqlens = torch.tensor([0, len(text)], dtype=torch.int32)
        logits = exact.logits(exact(text, cu_seqlens, len(text)))[2:-1]
        limit = 1e-4 if dtype == torch.float32 else 0.3
        raw = logits.log_softmax(-1)
        for place, (token, number) in enumerate(zip(one.ids, one.log_probs, strict=True)):
            assert number.raw == pytest.approx(float(raw[place, token]), abs=limit)
            temperature = answer.request.settings.temperature
            drawn = (logits[place] / temperature).log_softmax(-1)[token] if temperature else 0.0
            assert number.drawn == pytest.approx(float(drawn), abs=2 * limit)
            best = raw[place].topk(3).values.tolist()
            assert [log_prob for _, log_prob in number.top] == pytest.approx(best, abs=limit)
            assert number.top[0][1] >= number.top[1][1] >= number.top[2][1]


# ------------------------------------------------------------------------------ several of one


@pytest.mark.parametrize("max_running", [1, 3, 8, 64])
def test_eight_continuations_are_those_of_eight_keys(max_running):
    model = build()
    request = Request([4, 8, 15, 16, 23, 42], SamplingConfig(n=8, max_new_tokens=9, seed=3))
    engine = make_engine(model, max_running=max_running)
    (answer,) = engine.generate([request])
    assert [one.ids for one in answer.continuations] == [one.ids for one in alone(model, request)]
    assert len({tuple(one.ids) for one in answer.continuations}) > 4
    check_nothing_is_held(engine)


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_eight_continuations_are_one_prefill(length):
    engine = make_engine(build(), step_tokens=8)
    settings = SamplingConfig(n=8, max_new_tokens=6, stop_ids=())
    list(engine.generate([Request(list(range(length)), settings)]))
    assert engine.stats.prompt_tokens == length
    assert engine.stats.new_tokens == 48
    assert engine.stats.preemptions == 0


def test_equal_prompts_are_read_once():
    engine = make_engine(build())
    settings = SamplingConfig(max_new_tokens=4, stop_ids=())
    prompt = list(range(13))
    list(engine.generate([Request(prompt, replace_seed(settings, seed)) for seed in range(5)]))
    # Three blocks are shared, and each reads its last token.
    assert engine.stats.prompt_tokens == 13 + 4 * 1
    assert engine.stats.shared_tokens == 4 * 12


def replace_seed(settings, seed):
    return settings.model_copy(update={"seed": seed})


# ---------------------------------------------------------------------------- order and stream


def lengths(*counts):
    return [
        Request([1, 2, at], SamplingConfig(temperature=0.0, max_new_tokens=count, stop_ids=()))
        for at, count in enumerate(counts)
    ]


def test_answers_come_in_order_or_as_they_are_completed():
    engine = make_engine(build())
    requests = lengths(9, 2, 5, 2)
    assert [one.index for one in engine.generate(requests)] == [0, 1, 2, 3]
    done = list(engine.generate(requests, in_order=False))
    assert [one.index for one in done] == [1, 3, 2, 0]
    assert [one.request for one in done] == [requests[at] for at in (1, 3, 2, 0)]


def test_requests_are_read_as_there_is_room():
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield lengths(3)[0]

    engine = make_engine(build(), max_running=4)
    coming = engine.generate(endless())
    assert pulled == 0
    for number, _ in zip(range(20), coming, strict=False):
        # Those that are answered, run, and wait.
        assert pulled <= number + 1 + 2 * 4 + 4
    coming.close()
    check_nothing_is_held(engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_stream_that_is_closed_gives_back_its_memory(dtype):
    model = build(dtype)
    engine = make_engine(model)
    requests = catalogue(6, sampled=False)
    coming = engine.generate(requests)
    next(coming)
    coming.close()
    check_nothing_is_held(engine)
    again = list(engine.generate(requests))
    assert [one.ids for one in again[3].continuations] == [
        one.ids for one in alone(model, requests[3])
    ]


def test_an_error_in_a_callback_gives_back_the_memory():
    engine = make_engine(build())

    def fail(index, number, token):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(engine.generate(catalogue(6, sampled=False), on_token=fail))
    check_nothing_is_held(engine)


def test_a_forward_pass_that_fails_leaves_no_block_to_be_found(monkeypatch):
    """Its keys were never written."""
    model = build()
    engine = make_engine(model)
    request = Request(list(range(20)), SamplingConfig(temperature=0.0, max_new_tokens=5))

    def fail(*args):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "next_logits", fail)
        with engine.open() as session:
            session.submit(request)
            with pytest.raises(ZeroDivisionError):
                session.step()
    check_nothing_is_held(engine)
    with engine.open() as session:
        session.submit(request)
        while not session.idle:
            session.step()
        (answer,) = session.finished()
    assert answer.continuations[0].ids == alone(model, request)[0].ids


def test_a_session_ends_with_a_step_that_fails(monkeypatch):
    """What its sequences have read is not known; without an error it would never get idle."""
    engine = make_engine(build())
    request = Request(list(range(20)), SamplingConfig(temperature=0.0, max_new_tokens=5))

    def interrupted(*args):
        raise KeyboardInterrupt

    with engine.open() as session:
        session.submit(request)
        session.step()
        with monkeypatch.context() as patch:
            patch.setattr(engine.runner, "next_logits", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.step()
        for use in (session.step, lambda: session.submit(request)):
            with pytest.raises(RuntimeError, match="a forward pass of it has failed"):
                use()
    check_nothing_is_held(engine)


def test_a_closed_session_cannot_be_used():
    engine = make_engine(build())
    with engine.open() as session:
        pass
    for use in (session.step, lambda: session.submit(lengths(1)[0])):
        with pytest.raises(RuntimeError, match="the session is closed"):
            use()


def test_what_is_refused_beside_a_session_forgets_nothing_of_it():
    engine = make_engine(build())
    request = Request(list(range(20)), SamplingConfig(max_new_tokens=5))
    with engine.open() as session:
        session.submit(request)
        session.step()
        with pytest.raises(RuntimeError, match="one set of requests at a time"):
            list(engine.generate([request]))
        assert len(engine.memory.pool.find(request.prompt, 20)) == 5


def test_texts_may_be_scored_between_answers():
    """Which forgets what is cached; running sequences keep their own blocks."""
    model = build()
    engine = make_engine(model, max_running=3)
    requests = catalogue(8, sampled=True)
    text = ScoreRequest([1, 2, 3], [4, 5])
    (expected,) = make_engine(model).score([text])
    for at, answer in enumerate(engine.generate(requests)):
        (score,) = engine.score([text])
        assert score.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
        right = alone(model, requests[at])
        assert [one.ids for one in answer.continuations] == [one.ids for one in right]
    check_nothing_is_held(engine)


# ------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_can_be_cancelled_at_any_step(n):
    """While it waits, is read in pieces, has forks that wait, decodes, or has ended."""
    model = build()
    settings = SamplingConfig(n=n, max_new_tokens=5, seed=8, stop_ids=(), logprobs=0)
    request = Request(list(range(10)), settings)
    other = Request([7, 7, 7], SamplingConfig(max_new_tokens=12, seed=1, stop_ids=()))
    expected = [one.ids for one in alone(model, request)]
    beside = alone(model, other)[0].ids
    engine = make_engine(model, step_tokens=4, max_running=3)
    for steps in range(14):
        with engine.open() as session:
            answers = {}
            assert session.submit(other) == 0
            assert session.submit(request) == 1
            for step in range(40):
                if step == steps:
                    session.cancel(1)
                    session.cancel(1)
                session.step()
                answers |= {answer.index: answer for answer in session.finished()}
            assert session.idle
            session.cancel(1)
            session.cancel(99)
        assert answers[0].continuations[0].ids == beside
        found = answers[1].continuations
        for one, right in zip(found, expected, strict=True):
            assert one.ids == right[: len(one.ids)]
            assert (one.finish_reason == "cancelled") == (len(one.ids) < 5)
            assert len(one.log_probs) == len(one.ids)
        check_nothing_is_held(engine)
    assert [len(one.ids) for one in found] == [5] * n


# -------------------------------------------------------------------------------- new weights


def test_a_session_goes_on_with_new_weights():
    model = build()
    engine = make_engine(model)
    request = Request(list(range(14)), SamplingConfig(temperature=0.0, max_new_tokens=6))
    versions = []
    with engine.open() as session:
        for version in (0, 3, 4):
            session.submit(request)
            while not session.idle:
                session.step()
            (answer,) = session.finished()
            versions.append(answer.version)
            assert answer.continuations[0].ids == alone(model, request)[0].ids
            model.load_state_dict(build(seed=version + 1).state_dict())
            engine.refresh(version + 3 if version == 0 else version + 1)
    assert versions == [0, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_new_weights_leave_nothing_of_the_old(dtype):
    model = build(dtype)
    engine = make_engine(model)
    request = Request(list(range(14)), SamplingConfig(temperature=0.0, max_new_tokens=12))
    text = ScoreRequest(list(range(9)), [3, 4])

    def ask():
        with engine.open() as session:  # which may find what other sessions left
            session.submit(request)
            while not session.idle:
                session.step()
            return session.finished()[0]

    before, scored = ask(), next(engine.score([text]))
    assert (before.version, scored.version) == (0, 0)
    assert before.continuations[0].ids == alone(model, request)[0].ids
    ask()
    shared = engine.stats.shared_tokens
    model.load_state_dict(build(dtype, seed=1).state_dict())
    engine.refresh(7)
    after, other = ask(), next(engine.score([text]))
    assert engine.stats.shared_tokens == shared
    assert (after.version, other.version) == (7, 7)
    assert after.continuations[0].ids == alone(model, request)[0].ids
    assert after.continuations[0].ids != before.continuations[0].ids
    fresh = next(make_engine(build(dtype, seed=1)).score([text]))
    assert other.log_probs == fresh.log_probs != scored.log_probs


# ------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (Request([]), DataError, "the prompt is empty"),
        (
            Request([1] * (CONTEXT + 1)),
            DataError,
            f"the prompt has {CONTEXT + 1} tokens and the model reads {CONTEXT}",
        ),
        (Request([1, V]), DataError, f"token id {V} is outside the model's vocabulary of {V}"),
        (Request([-1]), DataError, "token id -1 is outside"),
        (Request([1] * 30), UsageError, "the cache holds 32 tokens and the request may need 40"),
        (Request([1], SamplingConfig(stop=("",))), UsageError, "a stop text is empty"),
    ],
)
def test_a_wrong_request_is_refused_and_the_others_go_on(request_, kind, message):
    engine = make_engine(build(), blocks=8)
    good = lengths(4)[0]
    with engine.open() as session:
        assert session.submit(good) == 0
        with pytest.raises(kind, match=message) as info:
            session.submit(request_)
        assert info.value.where == "prompt 1"
        with pytest.raises(kind) as info:
            session.submit(replace(request_, where="prompts.jsonl:7"))
        assert info.value.where == "prompts.jsonl:7"
        assert session.submit(good) == 1
        while not session.idle:
            session.step()
        assert len(session.finished()) == 2


def test_a_stop_text_needs_a_tokenizer():
    engine = InferenceEngine(build(), EngineConfig(cache_bytes=2**20), eos_id=EOS)
    request = Request([1], SamplingConfig(stop=("x",)))
    with pytest.raises(UsageError, match="stop texts need a tokenizer"):
        list(engine.generate([request]))


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"n": 1025}, {"logprobs": -1}, {"logprobs": 101}, {"seed": 2**63}]
)
def test_settings_out_of_bounds(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SamplingConfig(**wrong)


def test_a_cache_of_less_than_a_block():
    with pytest.raises(UsageError, match="holds no block of 4 tokens") as info:
        make_engine(build(), blocks=1, cache_bytes=100)
    assert info.value.todo == f"give it at least {2 * 2 * 24 * 4 * 4:,} bytes"


def test_a_cache_of_one_block_settles_near_ties():
    """Of which half, in fp32, is no block."""
    model = build(torch.bfloat16)
    requests = [
        Request([at], SamplingConfig(temperature=0.0, max_new_tokens=4, stop_ids=()))
        for at in range(20)
    ]
    engine = make_engine(model, blocks=1)
    for answer, request in zip(engine.generate(requests), requests, strict=True):
        assert answer.continuations[0].ids == alone(model, request)[0].ids
    assert engine.stats.settled > 0
    check_nothing_is_held(engine)


def test_near_ties_take_no_more_than_is_free(monkeypatch):
    """In 16 bits they have a cache of their own, beside that which takes half of what is free."""
    free = 2 * 2 * 24 * 4 * 2 * 60
    monkeypatch.setattr("bc2.generate.engine.device_available", lambda device: free)
    engine = make_engine(build(torch.bfloat16), cache_bytes=None)
    list(engine.generate(catalogue(12, sampled=False)))
    assert engine.memory.cache.data.nbytes == free // 2
    assert engine._near_ties._wide.memory.cache.data.nbytes <= free // 4


def test_a_request_that_fits_alone_is_answered_in_the_smallest_cache():
    """Also several of it: they take turns."""
    model = build()
    settings = SamplingConfig(max_new_tokens=17, n=3, stop_ids=())
    request = Request(list(range(16)), settings)
    engine = make_engine(model, blocks=8)
    found = list(engine.generate([request, request]))
    expected = [one.ids for one in alone(model, request)]
    for answer in found:
        assert [one.ids for one in answer.continuations] == expected
    assert engine.stats.preemptions > 0
    check_nothing_is_held(engine)


@pytest.mark.parametrize(
    ("prompt", "stop_ids", "message"),
    [
        ([1, 2.5], None, "holds 2.5, which is no token id"),
        (["1"], None, "holds '1', which is no token id"),
        ([True], None, "holds True, which is no token id"),
        (torch.tensor([1, 2]), None, "which is no token id"),
        ([1], (3, V), f"token id {V} is outside"),
    ],
)
def test_what_is_no_token_id_is_refused(prompt, stop_ids, message):
    engine = make_engine(build())
    with engine.open() as session, pytest.raises(DataError, match=message):
        session.submit(Request(prompt, SamplingConfig(stop_ids=stop_ids)))


def test_a_prompt_may_be_an_array():
    engine = make_engine(build())
    greedy = SamplingConfig(temperature=0, max_new_tokens=5)
    (one,) = engine.generate([Request(np.array([3, 1, 4]), greedy)])
    (other,) = engine.generate([Request([3, 1, 4], greedy)])
    assert one.continuations == other.continuations
