"""Generation; greedy output must depend on the prompt alone, not on batch, order or cache."""

import itertools
import random

import pytest
import torch

from bc2.errors import DataError, UsageError
from bc2.generate import near_ties
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling.token_groups import Draw
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, EOS = 67, 66
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=20)


def build(dtype=torch.float32, seed=0, gain=5.0, **changes):
    shape = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "context_length": 64,
    }
    model = Transformer(ModelConfig(**{**shape, **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # with ordinary weights it would repeat one token
        for weight in model.parameters():
            weight.mul_(gain if weight.dim() == 2 else 1)
    return model.to(dtype)


def prompts_of(count, seed=0, max_seqlen=25):
    rng = random.Random(seed)
    return [[rng.randrange(V - 1) for _ in range(rng.randint(1, max_seqlen))] for _ in range(count)]


def generate(model, prompts, settings, *, eos_id=EOS, on_token=None, decode_bytes=None, **config):
    """The one continuation of each prompt; the prompts have different seeds."""
    config = EngineConfig(**{"cache_bytes": 2**24, "block_tokens": 4, **config})
    engine = InferenceEngine(model, config, eos_id=eos_id, decode_bytes=decode_bytes, poison=True)
    requests = [
        Request(prompt, settings.model_copy(update={"seed": settings.seed + number}))
        for number, prompt in enumerate(prompts)
    ]
    found = list(engine.generate(requests, on_token=on_token))
    engine.memory.pool.check([])
    return [answer.continuations[0] for answer in found]


def ids(model, prompts, settings=GREEDY, **more):
    return [one.ids for one in generate(model, prompts, settings, **more)]


def canonical(model, prompts, settings=GREEDY):
    """Greedy continuations, each token by the canonical pass over the sequence alone."""
    runner = ModelRunner(model)
    found = []
    for prompt in prompts:
        text = list(prompt)
        while len(text) - len(prompt) < settings.max_new_tokens and len(text) <= 64:
            token = int(near_ties.canonical_choice(runner, text, Draw(settings)).ids)
            if token == EOS:
                break
            text.append(token)
        found.append(text[len(prompt) :])
    return found


def ordinary(dtype, position):
    return build(dtype, position=position)


def duplicated_rows(dtype, position):
    """Every token has a twin with the same row of the head, so every choice is an exact tie."""
    model = build(dtype, position=position)
    with torch.no_grad():
        model.lm_head.weight[V // 2 : 2 * (V // 2)] = model.lm_head.weight[: V // 2]
    return model


def nearly_duplicated_rows(dtype, position):
    """Twins whose rows differ by about the last bit: some are larger, some smaller."""
    model = duplicated_rows(dtype, position)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(V // 2, 32, generator=generator) * torch.finfo(dtype).eps
    with torch.no_grad():
        twins = model.lm_head.weight[V // 2 : 2 * (V // 2)]
        twins.copy_((twins.double() * (1 + noise.double())).to(dtype))
    return model


MODELS = [ordinary, duplicated_rows, nearly_duplicated_rows]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


#: Ways in which the same requests share passes and memory.
BATCHES = [{}, {"max_running": 2}, {"step_tokens": 9, "max_running": 9}, {"cache_bytes": 2**16}]


#: Those of the whole matrix that are tried every time.
QUICK = [
    (ordinary, torch.float32, "rope"),
    (duplicated_rows, torch.float32, "alibi"),
    (duplicated_rows, torch.bfloat16, "rope"),
    (nearly_duplicated_rows, torch.float32, "rope"),
    (nearly_duplicated_rows, torch.bfloat16, "alibi"),
    (nearly_duplicated_rows, torch.float64, "alibi"),
]
FORMS = [
    pytest.param(*form, marks=() if form in QUICK else pytest.mark.slow)
    for form in itertools.product(MODELS, DTYPES, ["rope", "alibi"])
]


def name_of(part):
    return getattr(part, "__name__", str(part))


@pytest.mark.parametrize(("make", "dtype", "position"), FORMS, ids=name_of)
def test_greedy_output_is_independent_of_companions_order_and_cache(make, dtype, position):
    model = make(dtype, position)
    prompts = prompts_of(9)
    alone = canonical(model, prompts)
    assert len({tuple(one) for one in alone}) > 4, "too uniform to show anything"
    for batch in BATCHES:
        assert ids(model, prompts, **batch) == alone
    assert [ids(model, [prompt])[0] for prompt in prompts] == alone
    order = [5, 0, 8, 2, 7, 1, 3, 6, 4]
    assert ids(model, [prompts[i] for i in order]) == [alone[i] for i in order]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", MODELS)
def test_greedy_output_soak(make, dtype, seed):
    position = ("rope", "alibi")[seed % 2]
    model = make(dtype, position)
    prompts = prompts_of(40, seed=seed, max_seqlen=40)
    alone = canonical(model, prompts)
    for trial, batch in enumerate(BATCHES):
        order = random.Random(trial).sample(range(40), 40)
        assert ids(model, [prompts[i] for i in order], **batch) == [alone[i] for i in order]


def test_near_ties_would_show_without_the_canonical_pass(monkeypatch):
    """Checks that the test above can fail: without the canonical pass, it does."""
    model = nearly_duplicated_rows(torch.bfloat16, "rope")
    prompts = prompts_of(9)
    alone = canonical(model, prompts)
    monkeypatch.setattr(near_ties, "ROUNDINGS", dict.fromkeys(near_ties.ROUNDINGS, 0.0))
    assert ids(model, prompts) != alone


def test_of_exact_twins_the_lowest_id_is_taken():
    model = duplicated_rows(torch.float32, "rope")
    for one in ids(model, prompts_of(5)):
        assert all(token < V // 2 or token == V - 1 for token in one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_takes_the_largest_logit(dtype):
    model = build(dtype)
    exact = build(torch.float64)
    exact.load_state_dict({k: w.double() for k, w in model.state_dict().items()})
    for prompt in prompts_of(4):
        text = list(prompt)
        for token in ids(model, [prompt])[0]:
            cu_seqlens = torch.tensor([0, len(text)], dtype=torch.int32)
            logits = exact.logits(exact(torch.tensor(text), cu_seqlens, len(text)))[-1]
            assert logits[token] >= logits.max() - 30 * torch.finfo(dtype).eps * 32**0.5
            text.append(token)


def sampled(**changes):
    return SamplingConfig(**{"max_new_tokens": 20, "seed": 5, **changes})


def test_sampling_is_repeatable_and_depends_on_the_seed():
    model = build(torch.float64)
    prompts = prompts_of(4)
    assert ids(model, prompts, sampled()) == ids(model, prompts, sampled())
    assert ids(model, prompts, sampled()) != ids(model, prompts, sampled(seed=6))


def test_sampling_is_the_prompts_own():
    model = build(torch.float64)
    first, *others = prompts_of(6)
    together = ids(model, [first, *others], sampled())
    assert ids(model, [first], sampled()) == together[:1]
    for batch in BATCHES:
        assert ids(model, [first, *others], sampled(), **batch) == together
    twice = ids(model, [first, first], sampled())
    assert twice[0] != twice[1]


def test_one_token_of_top_k_is_greedy():
    model = build(torch.float64)
    prompts = prompts_of(4)
    assert ids(model, prompts, sampled(top_k=1)) == ids(model, prompts)
    assert ids(model, prompts, sampled(top_p=1e-9)) == ids(model, prompts)
    assert ids(model, prompts, sampled(temperature=1e-9)) == ids(model, prompts)


def prefer(token):
    """A model that always chooses `token`: only this token's row is parallel to hidden states."""
    model = build(torch.float64, norm_head=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or name == "lm_head.weight":
                weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight[token] = 1.0
    return model


def test_the_end_of_text_ends_and_is_left_out():
    (found,) = generate(prefer(EOS), [[1, 2]], GREEDY, eos_id=EOS)
    assert (found.ids, found.finish_reason) == ([], "stop_id")


def test_max_new_tokens_ends():
    (found,) = generate(prefer(9), [[1, 2]], GREEDY, eos_id=EOS)
    assert (found.ids, found.finish_reason) == ([9] * 20, "length")


def test_the_context_ends():
    prompts = [[1] * 60, [1] * 64, [1] * 30]
    settings = SamplingConfig(temperature=0.0, max_new_tokens=30)
    found = generate(prefer(9), prompts, settings, eos_id=EOS)
    # The last token that is read fills the context; one more can be predicted from it.
    assert [len(one.ids) for one in found] == [5, 1, 30]
    assert {one.finish_reason for one in found} == {"length"}


LETTERS = [bytes([65 + i]) if i < V - 1 else b"" for i in range(V)]


def letters(tokens):
    return b"".join(LETTERS[token] for token in tokens)


def test_a_stop_text_ends_and_is_cut_off():
    seen = []
    settings = SamplingConfig(temperature=0.0, max_new_tokens=20, stop=("XYZ", "JJJ"))
    (found,) = generate(
        prefer(9),
        [[1, 2]],
        settings,
        eos_id=EOS,
        decode_bytes=letters,
        on_token=lambda index, _, token: seen.append((index, token)),
    )
    assert (found.ids, found.finish_reason, found.data) == ([9, 9, 9], "stop", b"")
    assert seen == [(0, 9)] * 3


def test_a_stop_text_across_tokens_of_several_bytes():
    pieces = {9: "模型".encode()}
    settings = SamplingConfig(temperature=0.0, max_new_tokens=20, stop=("型模型模",))
    (found,) = generate(
        prefer(9),
        [[1]],
        settings,
        eos_id=EOS,
        decode_bytes=lambda ids: b"".join(pieces[i] for i in ids),
    )
    assert (found.ids, found.finish_reason) == ([9] * 3, "stop")
    assert found.data.decode() == "模"


def test_a_stop_text_in_the_prompt_does_not_count():
    settings = SamplingConfig(temperature=0.0, max_new_tokens=2, stop=("JJJ",))
    (found,) = generate(prefer(9), [[9, 9, 9]], settings, eos_id=EOS, decode_bytes=letters)
    assert (found.ids, found.finish_reason, found.data) == ([9, 9], "length", b"JJ")


def test_tokens_that_are_no_bytes_do_not_hide_a_stop_text():
    """Control tokens decode to nothing, so a stop text may begin many tokens earlier."""
    model = build()
    said = ids(model, [[3, 1, 4]])[0]
    once = [at for at, token in enumerate(said) if said.count(token) == 1]
    first, last = once[0], once[-1]
    assert last - first > 4, "nothing between them to look past"
    pieces = {said[first]: b"X", said[last]: b"Y"}
    (found,) = generate(
        model,
        [[3, 1, 4]],
        SamplingConfig(temperature=0.0, max_new_tokens=20, stop=("XY",)),
        eos_id=EOS,
        decode_bytes=lambda tokens: b"".join(pieces.get(token, b"") for token in tokens),
    )
    assert (found.ids, found.finish_reason, found.data) == (said[: last + 1], "stop", b"")


def test_streaming_gives_every_token_in_order():
    model = build()
    prompts = prompts_of(5)
    seen = {index: [] for index in range(5)}
    found = generate(
        model,
        prompts,
        GREEDY,
        eos_id=EOS,
        on_token=lambda index, _, token: seen[index].append(token),
    )
    assert [one.ids for one in found] == list(seen.values())


def test_nothing_to_do():
    assert generate(build(), [], GREEDY, eos_id=EOS) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 65, "the prompt has 65 tokens and the model reads 64"),
        ([1, V], f"token id {V} is outside the model's vocabulary of {V}"),
        ([-1], "token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_an_error(prompt, message):
    with pytest.raises(DataError, match=message) as info:
        generate(build(), [[1], prompt], GREEDY, eos_id=EOS)
    assert info.value.where == "prompt 1"


def test_a_refused_request_comes_after_the_answers_to_those_before_it():
    engine = InferenceEngine(build(), EngineConfig(cache_bytes=2**24), eos_id=EOS)
    asked = [Request([1, 2], GREEDY), Request([3], GREEDY), Request([], GREEDY), Request([4])]
    answers = engine.generate(iter(asked))
    assert [next(answers).index, next(answers).index] == [0, 1]
    with pytest.raises(DataError, match="empty"):
        next(answers)


def test_requests_are_read_as_there_is_room():
    read = []

    def asked():
        for number in range(1000):
            read.append(number)
            yield Request([number % 60], GREEDY.model_copy(update={"max_new_tokens": 3}))

    config = EngineConfig(cache_bytes=2**24, max_running=8)
    engine = InferenceEngine(build(), config, eos_id=EOS)
    for done, _ in enumerate(engine.generate(asked()), 1):
        # Those that run, that wait, and that are answered in the same step.
        assert len(read) <= done + 3 * 8
    assert done == 1000


def test_stop_texts_need_a_decoder():
    with pytest.raises(UsageError, match="need a tokenizer"):
        generate(build(), [[1]], SamplingConfig(stop=("x",)), eos_id=EOS)
    with pytest.raises(UsageError, match="is empty"):
        generate(build(), [[1]], SamplingConfig(stop=("",)), eos_id=EOS, decode_bytes=letters)


def test_a_vocabulary_of_one():
    model = build(vocab_size=1)
    found = generate(model, [[0]], GREEDY, eos_id=5)
    assert found[0].ids == [0] * 20


def test_generation_leaves_the_model_trainable():
    model = build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids(model, prompts_of(3))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    model(torch.tensor([1, 2]), torch.tensor([0, 2], dtype=torch.int32), 2).sum().backward()
