"""The ALiBi model against one written out with loops in float64, as the 13B was trained."""

import math

import pytest
import torch
import torch.nn.functional as F

from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request, ScoreRequest
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.attention import alibi_slopes
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

HEADS = 6  # no power of two: the released order matters
SHAPE = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=HEADS,
    position="alibi",
)


def rms_norm(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def naive_forward(state, tokens, eval_form=False):
    """One document; `eval_form` adds slope · key position, as the released code does
    outside training, which softmax cannot tell from slope · distance."""
    size = len(tokens)
    x = state["model.embed_tokens.weight"][tokens]
    for n in range(2):
        prefix = f"model.layers.{n}."
        layer = {k.removeprefix(prefix): w for k, w in state.items() if k.startswith(prefix)}
        normed = rms_norm(x, layer["input_layernorm.weight"])
        q, k, v = (normed @ layer["self_attn.W_pack.weight"].T).chunk(3, dim=-1)
        heads = []
        for h, slope in enumerate(alibi_slopes(HEADS).tolist()):
            part = slice(4 * h, 4 * h + 4)
            scores = q[:, part] @ k[:, part].T / math.sqrt(4)
            for i in range(size):
                for j in range(size):
                    tilt = slope * (j if eval_form else j - i)
                    scores[i, j] = scores[i, j] + tilt if j <= i else -math.inf
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + torch.cat(heads, dim=-1) @ layer["self_attn.o_proj.weight"].T
        normed = rms_norm(x, layer["post_attention_layernorm.weight"])
        gate = normed @ layer["mlp.gate_proj.weight"].T
        up = normed @ layer["mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj.weight"].T
    x = rms_norm(x, state["model.norm.weight"])
    return x @ F.normalize(state["lm_head.weight"]).T


def build():
    model = Transformer(SHAPE)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1 if "norm" in name else 8)
    return model.double()


def test_logits_and_gradients_of_packed_documents():
    model = build()
    texts = [torch.arange(n) * 7 % 50 for n in (9, 14, 3)]
    cu_seqlens = torch.tensor([0, 9, 23, 26], dtype=torch.int32)
    logits = model.logits(model(torch.cat(texts), cu_seqlens, 14))
    state = {k: w.detach().clone().requires_grad_() for k, w in model.state_dict().items()}
    expected = torch.cat([naive_forward(state, text) for text in texts])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(logits)
    logits.backward(cotangent)
    expected.backward(cotangent)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, state[name].grad, rtol=1e-8, atol=1e-10)


def test_the_released_form_outside_training_is_the_same():
    model = build()
    text = torch.arange(12) * 5 % 50
    logits = model.logits(model(text, torch.tensor([0, 12], dtype=torch.int32), 12))
    expected = naive_forward(model.state_dict(), text, eval_form=True)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_generation_and_scores_follow_it(dtype):
    """Greedy tokens and log-probabilities, over a cache, of texts that begin alike."""
    model = build().to(dtype)
    state = {name: weight.double() for name, weight in model.state_dict().items()}
    engine = InferenceEngine(
        model, EngineConfig(cache_bytes=2**20, block_tokens=4), eos_id=-1, poison=True
    )
    texts = [(torch.arange(n) * 7 % 50).tolist() for n in (1, 9, 14)]
    settings = SamplingConfig(temperature=0.0, max_new_tokens=5, logprobs=0)
    limit = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    requests = [Request(text, settings) for text in texts]
    for text, answer in zip(texts, engine.generate(requests), strict=True):
        (found,) = answer.continuations
        rows = naive_forward(state, torch.tensor(text + found.ids)).log_softmax(-1)
        best = rows[len(text) - 1 : -1].max(-1)
        assert found.ids == best.indices.tolist()
        raw = [number.raw for number in found.log_probs]
        assert raw == pytest.approx(best.values.tolist(), abs=limit)
        (score,) = engine.score([ScoreRequest(text, found.ids)])
        assert score.log_probs == pytest.approx(best.values.tolist(), abs=limit)
        assert score.all_greedy
