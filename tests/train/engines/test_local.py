"""The local engine against AdamW written out in float64, and accumulation against the whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bc2.data.loader import Batch, pack
from bc2.model.heads import Head
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Attention, Linear, Transformer
from bc2.parallel import build
from bc2.parallel.mesh import Mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.base import Engine, EngineState
from bc2.train.engines.local import LocalEngine
from bc2.train.engines.make import make_engine
from bc2.train.memory.estimate import estimate
from bc2.train.memory.shape import TrainingShape
from bc2.train.objective import Loss
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.speed.clock import Clock

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
    context_length=16,
)  # fmt: skip
EOS = 2
OBJECTIVE = NextToken(2e-4)


def model(seed: int = 0) -> Transformer:
    built = Transformer(CONFIG)
    built.init_weights(torch.Generator().manual_seed(seed))
    return built


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Rows of 16 + 1 tokens with documents of uneven length, so labels are uneven too."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(3, 64, size=(count, 17))
    drawn[rng.random(drawn.shape) < np.linspace(0.02, 0.4, count)[:, None]] = EOS
    return drawn


def batch(drawn: np.ndarray) -> Batch:
    return pack(drawn, np.zeros(len(drawn), np.int64), EOS)


def gradients(engine: LocalEngine) -> dict[str, Tensor]:
    pairs = zip(engine.parts, engine.master, strict=True)
    return {name: p.grad.clone() for name, p in pairs if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_the_full_batch_to_rounding(micro: int) -> None:
    drawn = rows(8)
    whole = batch(drawn)
    parts = [batch(drawn[i : i + micro]) for i in range(0, 8, micro)]
    assert len({part.num_labels for part in parts}) > 1, "micro-batches must weigh unequally"
    one = LocalEngine(model(), AdamWConfig())
    two = LocalEngine(model(), AdamWConfig())
    full = one.accumulate([whole], OBJECTIVE, divisor=whole.num_labels)
    sums = two.accumulate(parts, OBJECTIVE, divisor=sum(p.num_labels for p in parts))
    assert sums == pytest.approx(full, rel=1e-6)
    expected, got = gradients(one), gradients(two)
    assert expected.keys() == got.keys()
    for name, grad in expected.items():
        # by norm: an element that is nearly zero has no digits of its own to agree in
        assert (got[name] - grad).norm() <= 1e-6 * grad.norm(), name


def reference_step(
    weights: dict[str, Tensor], moments: dict[str, tuple[Tensor, Tensor]],
    grads: Mapping[str, Tensor], step: int, config: AdamWConfig, lr: float,
) -> None:  # fmt: skip
    """AdamW with clipping (Loshchilov & Hutter, algorithm 2) in float64."""
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values()))
    scale = min(1.0, config.clip_norm / (norm + 1e-6))
    b1, b2 = config.betas
    for name, weight in weights.items():
        grad = grads[name].double() * scale
        m, v = moments[name]
        m.mul_(b1).add_((1 - b1) * grad)
        v.mul_(b2).add_((1 - b2) * grad**2)
        decay = config.weight_decay if weight.dim() >= 2 else 0.0
        weight.mul_(1 - lr * decay)
        update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + config.eps)
        weight.sub_(lr * update)


def test_updates_follow_adamw_with_clipping_and_no_decay_of_norms() -> None:
    config = AdamWConfig(learning_rate=1e-2, clip_norm=0.5, weight_decay=0.1)
    engine = LocalEngine(model(), config)
    weights = {
        n: p.detach().double().clone() for n, p in zip(engine.parts, engine.master, strict=True)
    }
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in weights.items()}
    clipped = 0
    for step in range(1, 6):
        data = batch(rows(4, seed=step))
        engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
        norm = engine.gradient_norm()
        clipped += norm > config.clip_norm
        lr = config.learning_rate / step
        reference_step(weights, moments, gradients(engine), step, config, lr)
        engine.update(lr, norm=norm, clip_norm=config.clip_norm)
        for name, master in zip(engine.parts, engine.master, strict=True):
            torch.testing.assert_close(
                master.detach().double(), weights[name], rtol=2e-5, atol=2e-7, msg=name
            )
        # what follows compares single steps, not the drift of two precisions
        for name, master in zip(engine.parts, engine.master, strict=True):
            weights[name].copy_(master.detach().double())
    assert clipped, "clipping was never exercised"


#: The first half of the model: gradients end before it.
FIRST_HALF = ("model.embed_tokens.", "model.layers.0.")
#: The second half, which gradients pass through.
SECOND_HALF = ("model.layers.1.", "model.norm.", "lm_head.")


def half_frozen(frozen: tuple[str, ...]) -> Transformer:
    built = model()
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    return built


@pytest.mark.parametrize("frozen", [FIRST_HALF, SECOND_HALF], ids=["first", "second"])
@pytest.mark.parametrize("checkpointing", [0, 1])
def test_half_a_model_trains_as_in_plain_torch(frozen: tuple[str, ...], checkpointing: int) -> None:
    """Against torch's own loss, clipping and AdamW, in float64."""
    config = AdamWConfig(learning_rate=1e-2)
    engine = LocalEngine(half_frozen(frozen), config, checkpointing=checkpointing)
    plain = half_frozen(frozen).double()
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if (p.dim() >= 2) == matrices], **decay}
            for matrices, decay in ((True, {}), (False, {"weight_decay": 0.0}))
        ],
        lr=config.learning_rate, betas=config.betas, eps=config.eps,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    for step in range(5):
        data = batch(rows(4, seed=step))
        measured = engine.accumulate([data], NextToken(0.0), divisor=data.num_labels)
        norm = engine.gradient_norm()
        engine.update(config.learning_rate, norm=norm, clip_norm=config.clip_norm)
        tokens = torch.from_numpy(data.tokens).flatten()
        hidden = plain(tokens, torch.from_numpy(data.cu_seqlens), data.max_seqlen)
        loss = cross_entropy(plain.logits(hidden), torch.from_numpy(data.labels).flatten())
        adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        whole = torch.nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
        adamw.step()
        assert measured["loss"] / data.num_labels == pytest.approx(float(loss.detach()), rel=1e-5)
        assert norm == pytest.approx(float(whole), rel=1e-4)
    begun = dict(model().named_parameters())
    kept = engine.snapshot()
    for name, parameter in plain.named_parameters():
        weight = kept.weights.whole(name)
        torch.testing.assert_close(weight.double(), parameter.detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(weight, begun[name].detach()) == name.startswith(frozen)
    assert {name.partition(".")[2] for name in kept.optimizer.shapes} == trained.keys()


@pytest.mark.parametrize("head", ["language", "scalar"])
def test_what_is_frozen_takes_two_bytes_in_bf16(head: str) -> None:
    """The embedding and the head too, which are fp32 where they are trained."""
    built = Transformer(CONFIG.model_copy(update={"head": head}))
    built.init_weights(torch.Generator().manual_seed(0))
    exact = {name: p.detach().clone() for name, p in built.named_parameters()}
    last = "lm_head.weight" if head == "language" else "score.weight"
    kept = {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", last}
    for name in kept:
        built.get_parameter(name).requires_grad_(False)
    engine = LocalEngine(built, AdamWConfig(), precision="bf16")
    objective = OBJECTIVE if head == "language" else FirstValue()
    data = batch(rows(4))
    engine.accumulate([data], objective, divisor=data.num_labels)
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)
    held = {one.data_ptr() for one in engine.held_tensors()}
    state = engine.snapshot()
    for name, parameter in engine.model.named_parameters():
        assert (parameter.dtype, parameter.grad) == (torch.bfloat16, None)
        assert (name in engine.trained) == (name not in kept)
        if name in kept:
            assert parameter.data_ptr() not in held
            assert torch.equal(state.weights.whole(name), exact[name].bfloat16().float())
        assert (f"exp_avg.{name}" in state.optimizer) == (name not in kept)
    # It says what a model says that is rounded altogether.
    rounded = Transformer(engine.model.config).bfloat16()
    rounded.load_state_dict(
        {name: state.weights.whole(name).bfloat16() for name in state.weights.shapes}
    )
    said = engine.evaluate(objective, data)["loss"]
    assert said == pytest.approx(float(objective(rounded, data).total.detach()), rel=1e-6)


class FirstValue:
    """The sum of all values."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        tokens = torch.from_numpy(batch.tokens).flatten()
        hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
        return Loss(model.values(hidden).square().sum(), {})


def test_bf16_computes_with_rounded_weights_over_fp32_master_and_state() -> None:
    engine = LocalEngine(model(), AdamWConfig(learning_rate=1e-4), precision="bf16")
    data = batch(rows(4))
    for _ in range(3):
        engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
        engine.update(1e-4, norm=engine.gradient_norm(), clip_norm=0.5)
    pairs = list(zip(engine.parts, engine.model.parameters(), engine.master, strict=True))
    for name, parameter, master in pairs:
        assert master.dtype == torch.float32
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            # rounded where they are used, so that they need no second copy
            assert parameter is master
        else:
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, master.to(torch.bfloat16))
        assert {v.dtype for v in engine.optimizer.state[master].values()} == {torch.float32}
    hidden = engine.model(
        *(torch.from_numpy(x) for x in (data.tokens.flatten(), data.cu_seqlens)), 16
    )
    assert hidden.dtype == torch.bfloat16
    moved = [not torch.equal(m, m.to(torch.bfloat16).float()) for m in engine.master]
    assert any(moved), "master weights hold no more than bf16 would"


def test_bf16_gradients_are_close_to_fp32() -> None:
    data = batch(rows(8))
    grads = []
    for precision in ("fp32", "bf16"):
        engine = LocalEngine(model(), AdamWConfig(), precision=precision)
        engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
        grads.append(torch.cat([g.flatten() for g in gradients(engine).values()]))
    cosine = torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_snapshot_and_restore_are_exact(precision: str) -> None:
    def advance(engine: LocalEngine, first: int, last: int) -> None:
        for step in range(first, last):
            data = batch(rows(4, seed=step))
            engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
            engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)

    straight = LocalEngine(model(), AdamWConfig(), precision=precision)  # type: ignore[arg-type]
    advance(straight, 0, 3)
    state = copy.deepcopy(straight.snapshot())
    advance(straight, 3, 6)
    resumed = LocalEngine(model(seed=9), AdamWConfig(), precision=precision)  # type: ignore[arg-type]
    resumed.restore(state.weights, state.optimizer)
    advance(resumed, 3, 6)
    one, two = straight.snapshot(), resumed.snapshot()
    for ours, theirs in ((one.weights, two.weights), (one.optimizer, two.optimizer)):
        assert ours.shapes == theirs.shapes
        assert all(torch.equal(ours.whole(name), theirs.whole(name)) for name in ours.shapes)


def test_snapshot_is_a_copy() -> None:
    engine = LocalEngine(model(), AdamWConfig())
    data = batch(rows(4))
    engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
    weights = engine.snapshot().weights
    before = weights.whole("lm_head.weight").clone()
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)
    assert torch.equal(weights.whole("lm_head.weight"), before)


def test_a_released_snapshot_is_copied_over_by_the_next() -> None:
    engine = LocalEngine(model(), AdamWConfig())
    data = batch(rows(4))
    engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)

    def places(state: EngineState) -> list[int]:
        return [f.data.data_ptr() for f in [*state.weights.fragments, *state.optimizer.fragments]]

    first, second = engine.snapshot(), engine.snapshot()
    assert not set(places(first)) & set(places(second)), "the first may still be read"
    was = places(second)
    second.release()
    assert "lm_head.weight" not in second.weights, "what is copied over is not to be read"
    engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)
    third = engine.snapshot()
    assert places(third) == was
    for name, master in zip(engine.parts, engine.master, strict=True):
        assert torch.equal(third.weights.whole(name), master), name
        for key, value in engine.optimizer.state[master].items():
            assert torch.equal(third.optimizer.whole(f"{key}.{name}"), value), name


def test_weights_that_were_never_restored_are_not_used() -> None:
    engine = LocalEngine(model(), AdamWConfig(), blank=True)
    data = batch(rows(4))
    with pytest.raises(RuntimeError, match="none were restored"):
        engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
    with pytest.raises(RuntimeError, match="none were restored"):
        engine.evaluate(OBJECTIVE, data)
    with pytest.raises(RuntimeError, match="none were restored"):
        engine.snapshot()
    with pytest.raises(RuntimeError, match="none were restored"), engine.runner():
        pass
    given = LocalEngine(model(), AdamWConfig()).snapshot()
    engine.restore(given.weights, given.optimizer)
    engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)


def test_no_weights_are_drawn_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PretrainConfig(
        length="1 steps", batch_tokens=16, micro_batch=1, sequence_length=16, device="cpu"
    )

    def made(blank: bool) -> Engine:
        return make_engine(CONFIG, settings, ParallelConfig(), Mesh(), blank=blank)

    assert not made(blank=False).blank
    monkeypatch.setattr(build, "draw_weight", None)  # which cannot be called
    assert made(blank=True).blank
    with pytest.raises(TypeError):
        made(blank=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_begins_with_given_weights(precision: str) -> None:
    settings = PretrainConfig(
        length="1 steps", batch_tokens=16, micro_batch=1, sequence_length=16, device="cpu",
        precision=precision, seed=4,
    )  # fmt: skip
    given = LocalEngine(model(9), AdamWConfig()).snapshot().weights
    engine = make_engine(CONFIG, settings, None, Mesh(), weights=given)
    kept = engine.snapshot()
    assert all(torch.equal(kept.weights.whole(name), given.whole(name)) for name in given.shapes)
    assert not kept.optimizer.shapes
    with pytest.raises(ValueError, match="blank"):
        make_engine(CONFIG, settings, None, Mesh(), weights=given, blank=True)


def test_discard_forgets_the_gradient() -> None:
    engine = LocalEngine(model(), AdamWConfig())
    data = batch(rows(4))
    engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
    engine.discard()
    assert not gradients(engine)


@pytest.mark.slow
def test_compiled_gives_the_same_numbers_and_settles() -> None:
    """Document boundaries change with every batch; graphs must not be built anew for each."""
    from torch._dynamo.utils import counters

    eager = LocalEngine(model(), AdamWConfig())
    compiled = LocalEngine(model(), AdamWConfig(), compile=True)
    graphs = []
    for step in range(20):
        data = batch(rows(4, seed=step))
        losses = []
        for engine in (eager, compiled):
            measured = engine.accumulate([data], OBJECTIVE, divisor=data.num_labels)
            engine.update(1e-3, norm=engine.gradient_norm(), clip_norm=0.5)
            losses.append(measured["loss"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    # Each size that varies (documents, the max_seqlen one) costs a graph when it first does.
    assert graphs[-1] == graphs[9]


def kernels(engine: LocalEngine) -> tuple[set[str], set[bool], set[bool]]:
    """Backends of attention, whether layers take their gradients by bmm, compiled heads."""
    modules = list(engine.model.modules())
    heads = [module for module in modules if isinstance(module, Head)]
    linear = [m for m in modules if isinstance(m, Linear) and not isinstance(m, Head)]
    return (
        {module.backend for module in modules if isinstance(module, Attention)},
        {module.bmm_backward for module in linear},
        {head.compiled for head in heads},
    )


def test_compiling_takes_the_kernels_that_are_fast_on_a_cpu() -> None:
    """Nothing is compiled before the first forward pass: it is only asked for here."""
    assert kernels(LocalEngine(model(), AdamWConfig())) == ({"auto"}, {False}, {False})
    compiled = LocalEngine(model(), AdamWConfig(), compile=True)
    assert kernels(compiled) == ({"bmm"}, {True}, {True})
    asked = model()
    for layer in asked.model.layers:
        layer.self_attn.backend = "naive"
    backends, _, _ = kernels(LocalEngine(asked, AdamWConfig(), compile=True))
    assert backends == {"naive"}


def test_what_an_engine_holds_is_its_weights_and_states() -> None:
    engine = LocalEngine(model(), AdamWConfig())
    weights = {p.data_ptr() for p in engine.model.parameters()}
    assert {held.data_ptr() for held in engine.held_tensors()} == weights, "no states yet"
    whole = batch(rows(4))
    engine.accumulate([whole], OBJECTIVE, divisor=whole.num_labels)
    engine.update(1e-3, norm=engine.gradient_norm(), clip_norm=1.0)
    held = [one for one in engine.held_tensors() if one.numel() > 1]
    number = sum(p.numel() for p in engine.model.parameters())
    assert sum(one.numel() for one in held) == 3 * number, "and two moments of each"


def test_gradients_take_what_is_planned_when_the_last_one_comes() -> None:
    """fp32 alone: of several micro-batches too, no bf16 gradient is there beside them."""
    engine = LocalEngine(model(), AdamWConfig(), precision="bf16")
    found: list[int] = []

    def count(_: Tensor) -> None:
        held = [p.grad for p in {*engine.model.parameters(), *engine.master} if p.grad is not None]
        found.append(sum(grad.numel() * grad.element_size() for grad in held))

    engine.model.model.embed_tokens.weight.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    data = batch(rows(4))
    engine.accumulate([data] * 2, OBJECTIVE, divisor=2 * data.num_labels)
    shape = TrainingShape(CONFIG, 4, 16, "bf16", 0)
    planned = estimate(replace(shape, accumulated=True)).phases["end"]["gradients"]
    assert found == [planned] * 2


def test_a_gradient_of_another_objective_is_refused() -> None:
    """It would be dropped by the next `accumulate`, and summed over no ranks."""
    drawn = batch(rows(2))
    one, two = (LocalEngine(model(seed), AdamWConfig()) for seed in (0, 1))

    def joint(actor: Transformer, data: Batch, clock: Clock | None = None) -> Loss:
        loss = OBJECTIVE(actor, data, clock)
        return Loss(loss.total + two.call_model(OBJECTIVE, data, clock).total, loss.sums)

    with pytest.raises(RuntimeError, match="its own `accumulate`"):
        one.accumulate([drawn], joint, divisor=drawn.num_labels)
    with torch.no_grad():
        said = two.call_model(OBJECTIVE, drawn, Clock())
    assert said.total.item() == OBJECTIVE(model(1), drawn).total.item()
