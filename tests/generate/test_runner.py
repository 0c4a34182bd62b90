"""A model over a cache is the model, in whatever pieces it reads."""

from contextlib import contextmanager

import pytest
import torch

from bc2.generate.cache.memory import Memory
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.generate.runner import ModelRunner
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V = 53


def build(dtype=torch.float64, **changes):
    shape = {
        "vocab_size": V,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_layers": 3,
        "num_heads": 3,
        "context_length": 64,
    }
    model = Transformer(ModelConfig(**{**shape, **changes}))
    model.init_weights(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1)
    return model.to(dtype)


def layer_by_layer_of(model):
    """A runner that is lent the weights of one submodule at a time."""
    lent = []

    @contextmanager
    def weights_of(path):
        lent.append(path)
        yield {name: w.detach().clone() for name, w in model.get_submodule(path).named_parameters()}

    empty = Transformer(model.config).to("meta")
    dtype, device = model.lm_head.weight.dtype, model.lm_head.weight.device
    return ModelRunner(empty, weights_of=weights_of, dtype=dtype, device=device), lent


def texts_of(*lengths):
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]


def whole(model, text):
    """Hidden states and logits of one text, by the packed forward pass of training."""
    hidden = model(text, torch.tensor([0, len(text)], dtype=torch.int32), len(text))
    return hidden, model.logits(hidden)


@pytest.mark.parametrize("how", ["all weights", "layer by layer"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("norm_head", [True, False])
@torch.no_grad()
def test_pieces_are_the_whole(position, norm_head, how):
    model = build(position=position, norm_head=norm_head)
    runner = ModelRunner(model) if how == "all weights" else layer_by_layer_of(model)[0]
    assert runner.key_heads == 3
    texts = texts_of(1, 13, 30)
    memory = Memory.of(model.config, 3, 20, 4, torch.float64, runner.device, poison=True)
    blocks = [memory.take(-(-len(text) // 4)) for text in texts]
    read = [0] * 3
    # Single tokens and pieces of other texts beside each other.
    for counts in ([0, 5, 7], [0, 1, 1], [1, 6, 1], [0, 0, 20], [0, 1, 1]):
        work = [(at, count) for at, count in enumerate(counts) if count]
        segments = [Segment(read[at], count, blocks[at]) for at, count in work]
        tokens = torch.cat([texts[at][read[at] : read[at] + count] for at, count in work])
        step = PagedStep(memory.cache, segments)
        hidden, logits = runner.next_logits(tokens, step, torch.arange(len(tokens)))
        for (at, count), mine, scores in zip(
            work,
            hidden.split([count for _, count in work]),
            logits.split([count for _, count in work]),
            strict=True,
        ):
            expected, expected_logits = whole(model, texts[at])
            span = slice(read[at], read[at] + count)
            torch.testing.assert_close(mine, expected[span], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(scores, expected_logits[span], rtol=1e-9, atol=1e-10)
            read[at] += count
    assert read == [1, 13, 30]


@pytest.mark.parametrize("how", ["all weights", "layer by layer"])
@torch.no_grad()
def test_log_probabilities_of_labels(how):
    model = build()
    runner = ModelRunner(model) if how == "all weights" else layer_by_layer_of(model)[0]
    (text,) = texts_of(12)
    memory = Memory.of(model.config, 3, 3, 4, torch.float64, runner.device)
    step = PagedStep(memory.cache, [Segment(0, 12, memory.take(3))])
    rows, labels = torch.tensor([3, 3, 11, 7]), torch.tensor([1, 2, 0, 52])
    found = runner.log_probs(text, step, rows, labels, top_k=2)
    expected = whole(model, text)[1].log_softmax(-1)[rows]
    torch.testing.assert_close(found.log_probs, expected.gather(1, labels[:, None])[:, 0])
    assert torch.equal(found.top_ids, expected.topk(2).indices)


def test_weights_are_read_where_they_are_and_lent_for_a_layer():
    model = build(norm_head=False)
    assert ModelRunner(model).head().data_ptr() == model.lm_head.weight.data_ptr()
    runner, lent = layer_by_layer_of(model)
    (text,) = texts_of(5)
    last = torch.tensor([4])
    with runner.no_grad():
        hidden = runner.layer_by_layer(text, None, torch.float64, last)
    assert lent == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.layers.2",
        "model.norm",
    ]
    torch.testing.assert_close(hidden, whole(model, text)[0][-1:].detach())


@torch.no_grad()
def test_what_follows_from_the_weights_is_forgotten_with_them():
    model = build()
    runner = ModelRunner(model)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            model.lm_head.weight[0] += factor
        runner.refresh()
        torch.testing.assert_close(runner.head(), model.head_weight())
        assert runner.longest_row() == pytest.approx(1.0)
    plain = build(norm_head=False)
    runner = ModelRunner(plain)
    before = runner.longest_row()
    with torch.no_grad():
        plain.lm_head.weight *= 2
    runner.refresh()
    assert runner.longest_row() == pytest.approx(2 * before)
