"""``init``: training goes on from another run's weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from bc2 import recipe
from bc2.data.loader import Loader
from bc2.errors import RecipeError, RefError
from bc2.model.store import load_model
from bc2.model.transformer import Transformer
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.train.logs.log_rows import METRICS, read_rows
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import open_token_inputs
from bc2.train.snapshot import Snapshot

#: Of the run that goes on: other data, and a learning rate that moves the weights.
ON = ["name=on", "pretrain.seed=7", "pretrain.length=6 steps", "pretrain.schedule.warmup=1 steps"]


def train(*overrides: str) -> Artifact:
    loaded = recipe.load("small.toml", overrides)
    return Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])


def go_on(base: Artifact, *overrides: str) -> Artifact:
    return train(*ON, f"pretrain.init={base.digest[:16]}", *overrides)


@pytest.fixture
def base(small: Path) -> Artifact:
    return train("pretrain.length=8 steps")


def losses(artifact: Artifact) -> list[float]:
    return [row["ce"] for row in read_rows(artifact.file(METRICS)) if row["event"] == "step"]


def heldout(artifact: Artifact) -> list[float]:
    rows = read_rows(artifact.file(METRICS))
    return [row["heldout_loss"] for row in rows if row["event"] == "eval"]


def reference(base: Artifact) -> list[float]:
    """The cross-entropy of each step of plain torch in float64, from the weights of `base`."""
    registry = Registry.open()
    config = recipe.load("small.toml", ON).get(PretrainConfig)
    (tokens,) = registry.list("tokens")
    data = open_token_inputs(config, tokens, parent_of_kind(registry, tokens, "tokenizer"))
    loader = Loader(data.shards, "train", data.mixture, config.sequence_length, data.shards.eos_id)
    plain: Transformer = load_model(base.path).double()
    parameters = list(plain.parameters())
    optimizer, rows = config.optimizer, config.batch_sequences
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay,
    )  # fmt: skip
    found = []
    for step in range(data.schedule.total):
        batch = loader.batch(step * rows, rows)
        labels = torch.from_numpy(batch.labels).flatten()
        ids = torch.from_numpy(batch.tokens).flatten()
        hidden = plain(ids, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
        logits = plain.logits(hidden)
        ce = cross_entropy(logits, labels)
        largest = logits[labels >= 0].max(dim=-1).values
        adamw.zero_grad()
        (ce + config.z_loss * largest.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, optimizer.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = data.schedule.learning_rate(step, peak=optimizer.learning_rate)
        adamw.step()
        found.append(float(ce.detach()))
    return found


def test_it_continues_as_plain_torch_in_float64(base: Artifact) -> None:
    artifact = go_on(base)
    assert losses(artifact) == pytest.approx(reference(base), rel=2e-5)
    # It begins where the other one ended, and says so.
    assert heldout(artifact)[0] == heldout(base)[-1] < heldout(base)[0]
    tokens = parent_of_kind(Registry.open(), artifact, "tokens")
    tokenizer = parent_of_kind(Registry.open(), tokens, "tokenizer")
    assert artifact.manifest.parents == (tokens.digest, tokenizer.digest, base.digest)
    assert artifact.key != train(*ON).key
    # Its optimizer begins anew.
    saved = Snapshot.load(artifact).optimizer
    assert float(saved.whole("step.model.norm.weight")) == 6


def spawned(base: Artifact, parallel: dict[str, Any], *more: str) -> list[float]:
    command = [sys.executable, "-m", "bc2", "pretrain", "small.toml", "--json", "--nproc", "2"]
    overrides = [*ON, f"pretrain.init={base.digest}", *more]
    overrides += [f"parallel.{name}={value}" for name, value in parallel.items()]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return losses(Registry.open().get(json.loads(done.stdout)["digest"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"tensor": 2}, {"sequence": 2}]
)
def test_each_layout_finds_the_same_losses(base: Artifact, parallel: dict[str, Any]) -> None:
    alone = losses(go_on(base))
    # A layout has no key of its own: the run would be found.
    for made in Registry.open().list("checkpoint", "on"):
        Registry.open().remove(made)
    assert spawned(base, parallel) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.hidden_size=64", "hidden_size is 32 there and 64 here"),
        ("model.num_layers=1", "num_layers is 2 there and 1 here"),
        ("model.position=alibi", "position is rope there and alibi here"),
    ],
)
def test_another_model_is_refused_before_anything_is_written(
    base: Artifact, override: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        go_on(base, override)
    assert override.partition("=")[0] in str(caught.value.where)
    assert Registry.open().list("checkpoint", "on") == []


def test_a_recipe_of_another_model_is_not_trained_first(small: Path) -> None:
    (small / "wide.toml").write_text('base = "small.toml"\n[model]\nhidden_size = 64\n')
    with pytest.raises(RecipeError, match=r"wide\.toml makes another model: hidden_size is 64"):
        train(*ON, "pretrain.init=wide.toml")
    assert Registry.open().list("checkpoint") == []


def test_ids_of_another_tokenizer_are_said(
    base: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "is not the tokenizer of checkpoint/small"
    go_on(base)
    assert said not in capsys.readouterr().err
    go_on(base, "tokenizer.sample_bytes=20000")  # as many pieces, and others
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(small: Path) -> None:
    with pytest.raises(RefError):
        train("pretrain.init=nobody")
    assert Registry.open().list("checkpoint") == []


def test_a_run_resumes_where_it_was_and_not_from_init(
    base: Artifact,
) -> None:
    straight = go_on(base, "pretrain.checkpoint_every=2 steps")
    registry = Registry.open()
    unfinished = registry.list("checkpoint", "on", finished=False)
    assert unfinished
    registry.remove(straight)
    assert go_on(base, "pretrain.checkpoint_every=2 steps").digest == straight.digest


def test_it_may_name_a_recipe_that_makes_it(small: Path) -> None:
    (small / "first.toml").write_text(
        'base = "small.toml"\n[pretrain]\nlength = "8 steps"\nsample_prompts = 0\n'
    )
    named = "pretrain.init=first.toml"
    on = recipe.load("small.toml", [*ON, named])
    assert Session(Registry.open()).find_inputs("checkpoint", on) is None
    # Not alone in the process that starts ranks, whatever ranks it needs.
    command = [sys.executable, "-m", "bc2", "pretrain", "small.toml", "--set", named]
    done = subprocess.run([*command, "--nproc", "2"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the model of 'first', which this run begins with, is not trained yet" in done.stderr
    assert "bc2 pretrain first.toml --nproc" in done.stderr
    artifact = train(*ON, named)
    found = Session(Registry.open()).find_inputs("checkpoint", on)
    assert found is not None
    (first,) = Registry.open().list("checkpoint", "first", finished=True)
    assert found.one("init") == first
    assert first.digest in artifact.manifest.parents


def test_a_run_does_not_begin_with_its_own_newest_checkpoint(base: Artifact) -> None:
    for name in ("small", "checkpoint/small"):
        with pytest.raises(RecipeError, match="the newest checkpoint of the name") as caught:
            train(f"pretrain.init={name}")
        assert caught.value.where == f"--set pretrain.init={name}"
    assert train("pretrain.init=small", *ON).manifest.parents[-1] == base.digest


def test_recipes_that_begin_with_each_other(small: Path) -> None:
    for name, other in (("one", "two"), ("two", "one"), ("alone", "alone")):
        Path(f"{name}.toml").write_text(f'base = "small.toml"\npretrain.init = "{other}.toml"\n')
    for name in ("one", "alone"):
        with pytest.raises(RecipeError, match="name each other as init"):
            Session(Registry.open()).obtain("checkpoint", recipe.load(f"{name}.toml"))


def test_a_finished_model_may_be_of_ranks_that_are_not_here(small: Path) -> None:
    first = 'base = "small.toml"\n[pretrain]\nlength = "5 steps"\nsample_prompts = 0\n'
    Path("first.toml").write_text(first)
    made = Session(Registry.open()).obtain("checkpoint", recipe.load("first.toml"))
    Path("first.toml").write_text(f"{first}[parallel]\ntensor = 2\n")
    begun = train(*ON, "pretrain.init=first.toml", "pretrain.length=2 steps")
    assert begun.manifest.parents[-1] == made.digest
    # It is other ranks' work if it is yet to be made.
    Path("first.toml").write_text(f"{first}seed = 1\n[parallel]\ntensor = 2\n")
    with pytest.raises(RecipeError, match="1 ranks cannot be parted"):
        train(*ON, "pretrain.init=first.toml")


def test_fresh_leaves_what_another_run_began_with(
    base: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open()
    (unfinished,) = registry.list("checkpoint", "small", finished=False)
    begun = go_on(unfinished)
    loaded = recipe.load("small.toml", ["pretrain.length=8 steps"])
    again = Session(registry, fresh=True).obtain("checkpoint", loaded, command=["bc2"])
    assert again.digest == base.digest
    assert "is needed by checkpoint/on@6" in capsys.readouterr().err
    assert registry.get(unfinished.digest).digest in begun.manifest.parents
