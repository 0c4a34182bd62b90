"""The RoPE model is transformers' Llama with NormHead and packed QKV taken away."""

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.head_loss import head_loss
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

SHAPE = ModelConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_layers=3,
    num_heads=4,
    norm_head=False,
    context_length=128,
)


def llama_config():
    return LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attention_bias=False,
        attn_implementation="sdpa",  # "eager" has its softmax in fp32
    )


def llama(dtype):
    return LlamaForCausalLM(llama_config()).to(dtype)


@pytest.fixture(autouse=True)
def _norms_in_the_models_dtype(monkeypatch):
    """transformers rounds its RMSNorm to fp32 also in a float64 model; we do not."""

    def forward(self, x):
        wide = x.double()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(x.dtype)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def to_llama(state):
    """Our names and rows as Llama's: W_pack splits into thirds."""
    converted = {}
    for name, weight in state.items():
        if "W_pack" in name:
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                converted[name.replace("W_pack", f"{part}_proj")] = third
        else:
            converted[name] = weight
    return converted


def drawn(shape, dtype):
    ours = Transformer(shape)
    ours.init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():  # norms of one would hide a missing multiplication
        for name, weight in ours.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
            else:
                weight.mul_(5)
    return ours.to(dtype)


def pair(dtype):
    ours = drawn(SHAPE, dtype)
    theirs = llama(dtype)
    theirs.load_state_dict(to_llama(ours.state_dict()))
    return ours, theirs


def tokens(count):
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_and_gradients(dtype, limit):
    ours, theirs = pair(dtype)
    text = tokens(100)
    cu_seqlens = torch.tensor([0, 99], dtype=torch.int32)
    hidden = ours(text[:-1], cu_seqlens, 99)
    logits = ours.logits(hidden)
    expected = theirs(text[None, :-1]).logits[0]
    assert (logits - expected).norm() / expected.norm() < limit
    head_loss(
        hidden, ours.lm_head.weight, text[1:], z_weight=0.0, norm_head=False
    ).loss_sum.backward()
    torch.nn.functional.cross_entropy(expected, text[1:], reduction="sum").backward()
    grads = to_llama({name: p.grad for name, p in ours.named_parameters()})
    for name, p in theirs.named_parameters():
        assert (grads[name] - p.grad).norm() / p.grad.norm() < limit, name


def test_packed_documents_are_llamas_separate_documents():
    ours, theirs = pair(torch.float64)
    texts = [tokens(n) for n in (17, 40, 1, 30)]
    cu_seqlens = torch.tensor([0, *map(len, texts)]).cumsum(0, dtype=torch.int32)
    logits = ours.logits(ours(torch.cat(texts), cu_seqlens, 40))
    expected = torch.cat([theirs(text[None]).logits[0] for text in texts])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("classes", [1, 3])
def test_values_are_those_of_llamas_classifier(classes):
    """Weights load by their names; each text's last token is what the classifier reads."""
    head = {"head": "classes", "num_classes": classes} if classes > 1 else {"head": "scalar"}
    ours = drawn(ModelConfig(**SHAPE.model_dump() | head), torch.float64)
    config = llama_config()
    config.num_labels = classes
    theirs = LlamaForSequenceClassification(config).double()
    theirs.load_state_dict(to_llama(ours.state_dict()))
    texts = [tokens(n) for n in (17, 40, 1, 30)]
    cu_seqlens = torch.tensor([0, *map(len, texts)]).cumsum(0, dtype=torch.int32)
    values = ours.values(ours(torch.cat(texts), cu_seqlens, 40)).view(-1, classes)
    for text, end, found in zip(texts, cu_seqlens[1:], values.split([17, 40, 1, 30]), strict=True):
        of_all = theirs.score(theirs.model(text[None]).last_hidden_state)[0]
        torch.testing.assert_close(found, of_all, rtol=1e-9, atol=1e-10)
        pooled = theirs(text[None]).logits[0]
        torch.testing.assert_close(values[end - 1], pooled, rtol=1e-9, atol=1e-10)
    seeds = torch.randn(values.shape, dtype=torch.float64)
    (values * seeds).sum().backward()
    every = [theirs.score(theirs.model(text[None]).last_hidden_state)[0] for text in texts]
    (torch.cat(every) * seeds).sum().backward()
    grads = to_llama({name: p.grad for name, p in ours.named_parameters()})
    for name, p in theirs.named_parameters():
        assert (grads[name] - p.grad).norm() / p.grad.norm() < 1e-10, name


WINDOW = SHAPE.context_length
REPOSITORY = Path(__file__).parents[2]


def real_prompts(count):
    """Pieces of this repository's documents, of 1 token to the whole window; bytes are tokens."""
    rng = random.Random(count)
    text = b"".join(path.read_bytes() for path in sorted((REPOSITORY / "docs").glob("*.md")))
    sizes = [1, 2, WINDOW - 1, WINDOW, *(rng.randint(1, WINDOW) for _ in range(count - 4))]
    starts = [rng.randrange(len(text) - WINDOW) for _ in sizes]
    return [[byte % 97 for byte in text[at : at + n]] for at, n in zip(starts, sizes, strict=True)]


def check_greedy(dtype, prompts, new_tokens, **config):
    """Ours in `dtype`, in one batch; theirs in fp64, one prompt after the other."""
    ours, theirs = pair(dtype)
    theirs = theirs.double()
    settings = SamplingConfig(temperature=0.0, max_new_tokens=new_tokens)
    engine = InferenceEngine(
        ours, EngineConfig(**{"cache_bytes": 2**24, **config}), eos_id=96, poison=True
    )
    answers = engine.generate([Request(prompt, settings) for prompt in prompts])
    found = [answer.continuations[0] for answer in answers]
    for prompt, one in zip(prompts, found, strict=True):
        # The last token that is read fills the window; one more can be predicted from it.
        room = min(new_tokens, WINDOW - len(prompt) + 1)
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=96,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        ended = [96] if one.stop_id == 96 else []
        assert one.ids + ended == expected
    assert len({tuple(one.ids) for one in found}) > len(found) * 0.7, "too uniform to show anything"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_greedy_generation_is_llamas(dtype):
    check_greedy(dtype, real_prompts(12), 6)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"step_tokens": 40, "cache_bytes": 300_000}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_greedy_generation_is_llamas_on_200_prompts(dtype, config):
    check_greedy(dtype, real_prompts(200), 24, **config)
