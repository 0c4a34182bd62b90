"""An algorithm of another package plugs into the run: it trains, resumes and runs on ranks.

The toy (`toy_algorithm`) is found by an entry point; nothing of bc2 knows it. In its run of 12
steps of 16 pairs it saves and evaluates at steps 4 and 8.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warmed
from toy_runs import BC2, PAIRS, STEPS, bc2, rows, same, saved, train

from bc2.errors import BadTraining, Interrupted
from bc2.model.store import load_config
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Registry
from bc2.train import train_run
from bc2.train.models import Models
from bc2.train.snapshot import STREAM, read_stream_state
from bc2.train.trained_models import TrainedModels

Change = Callable[[Any], Any]


def anew(folder: Path, name: str) -> None:
    """Take another home, with the same inputs and none of the runs."""
    home = folder / name
    shutil.copytree(folder / "home", home)
    os.environ["BC2_HOME"] = str(home)  # `toy` puts it back
    registry = Registry.open()
    for artifact in registry.list("checkpoint"):
        registry.remove(artifact)
    shutil.rmtree(home / "runs", ignore_errors=True)


def weights(artifact: Artifact, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(artifact.file(name))


# -- it trains


def test_its_verb_trains_on_the_one_loop(toy: Path) -> None:
    """By interpreters that find it as an installed package; nothing here is forked."""
    told = json.loads(bc2("toy", "toy.toml", "--json", warm=False))
    artifact = Registry.open().get(told["digest"])
    assert (artifact.title, artifact.manifest.role) == ("checkpoint/toy@12", "reward")
    assert set(artifact.files()) == {
        "metrics.jsonl", "model.json", "model.safetensors", "optimizer.safetensors", STREAM,
        "tokenizer.model", "trainer.json",
    }  # fmt: skip
    assert [*rows()[0]] == [
        "event", "step", "tokens", "samples", "loss", "right", "grad_norm", "clipped", "lr"
    ]  # fmt: skip
    assert [row["samples"] for row in rows()] == [[16 * i, 16 * i + 15] for i in range(STEPS)]
    assert all(0 <= row["right"] <= 1 for row in rows())
    assert [row["step"] for row in rows("eval")] == [0, 4, 8, 12]
    assert artifact.manifest.facts["heldout_right"] == rows("eval")[-1]["heldout_right"]
    (folder,) = Registry.open().runs.iterdir()
    facts = json.loads((folder / "run.json").read_text())
    assert [(m["name"], m["over"], m["better"]) for m in facts["metrics"]] == [
        ("loss", "pairs", "lower"), ("right", "pairs", "higher"),
        ("heldout_right", "pairs", "higher"),
    ]  # fmt: skip


def test_what_is_frozen_stays_and_what_is_trained_learns(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Models] = []
    make = train_run.make_models

    def keep(*args: Any, **named: Any) -> Models:
        seen.append(make(*args, **named))
        return seen[-1]

    monkeypatch.setattr(train_run, "make_models", keep)
    long = ["toy.length=30 steps", "toy.batch_pairs=32", "toy.eval_every=1000 steps"]
    artifact = train("toy", *long, "toy.optimizer.learning_rate=1e-2")
    judge = seen[0].frozen["judge"].model
    drawn = Transformer(judge.config)
    drawn.init_weights(torch.Generator().manual_seed(0))
    for name, weight in drawn.state_dict().items():
        assert torch.equal(judge.state_dict()[name], weight), name
    learnt = weights(artifact)
    assert learnt["score.weight"].shape == (1, 32)
    assert all(
        not torch.equal(learnt[n], w) for n, w in drawn.model.state_dict(prefix="model.").items()
    )
    late, early = ([row["loss"] for row in rows()[part]] for part in (slice(-10, None), slice(10)))
    assert np.mean(late) < np.mean(early)


def test_a_steps_numbers_are_those_of_the_whole_batch(toy: Path, monkeypatch) -> None:
    """The loss of the first step against one in float64 of the same data, all of it at once."""
    import toy_training

    drawn: list[Any] = []
    judged = toy_training.judged

    def keep(*given: Any) -> Any:
        drawn.append(judged(*given))
        return drawn[-1]

    monkeypatch.setattr(toy_training, "judged", keep)
    made = train("toy", "toy.length=1 steps", 'toy.schedule.warmup="0 steps"')
    step = rows()[0]
    batches = drawn[-8:-4] if len(drawn) > 8 else drawn  # evaluations before and after
    model = Transformer(load_config(made.path)).double()
    model.init_weights(torch.Generator().manual_seed(0))
    losses, right = [], 0
    for batch in batches:
        values = toy_training.values_of(model, batch).detach().numpy()
        side, margin = (batch.sample_fields[name][::2] for name in ("side", "margin"))
        ahead = side * (values[::2] - values[1::2])
        losses += [*np.log1p(np.exp(margin - ahead))[side != 0]]
        right += int(np.sum(ahead > 0))
    assert len(losses) == sum(batch.weights["pairs"] for batch in batches) < PAIRS
    assert step["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert step["right"] == pytest.approx(right / len(losses), rel=1e-12)


# -- it goes on in the same bits


def test_killed_runs_end_as_the_undisturbed_one(toy: Path, undisturbed) -> None:
    """Killed at two random steps, by signal 9."""
    rng, killed = random.Random(3), 0
    for at in (rng.randint(1, 3), rng.randint(5, 11)):
        with process_of("toy", "toy.toml") as process:
            if wait_for_step(process, at):
                process.kill()
            process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
    assert killed == 2
    artifact = train()
    same(undisturbed(), artifact)
    state = read_stream_state(artifact.path / STREAM)
    assert state.values["next"] == STEPS * PAIRS
    assert state.values["random"] == rng_after(STEPS)
    assert state.arrays["preferred"].sum() > 0


def process_of(*words: str) -> subprocess.Popen[str]:
    return warmed.Popen(
        [*BC2, *words], env=dict(os.environ), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], step: int) -> bool:
    """Whether the process logged a step while it was alive."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        logs = [*Registry.open().runs.glob("*/metrics.jsonl")]
        if logs and f'"step", "step": {step},' in logs[0].read_text():
            return True
        time.sleep(0.001)
    return False


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Change, str], None]:
    """Change the loss of a trained model's micro-batch, counted from 0 over steps of four."""

    def install(number: int, change: Change, objective: str = "Preference") -> None:
        import toy_training

        kind, count = getattr(toy_training, objective), iter(range(10**6))
        call = kind.__call__

        def changed(self: Any, *given: Any) -> Any:
            loss = call(self, *given)
            return change(loss) if torch.is_grad_enabled() and next(count) == number else loss

        monkeypatch.setattr(kind, "__call__", changed)

    return install


def end_process(loss: Any) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


@pytest.mark.parametrize("name", [pytest.param("toy", marks=pytest.mark.slow), "critic"])
def test_a_signal_in_a_step_saves_the_streams_state_before_it(
    toy: Path, undisturbed, in_step, name: str
) -> None:
    """In step 6, whose data the stream has drawn; what is saved is what was after step 5."""
    in_step(4 * 5 + 2, end_process)
    with pytest.raises(Interrupted):
        train(name)
    state = read_stream_state(saved(5).path / STREAM)
    assert state.values["next"] == 5 * PAIRS
    assert json.loads((saved(5).path / "trainer.json").read_text())["samples"] == 5 * PAIRS
    same(undisturbed(name), train(name))


def test_numbers_drawn_in_a_step_that_is_abandoned_are_drawn_again(
    toy: Path, monkeypatch, in_step, tmp_path: Path
) -> None:
    """By torch's generator, which objectives and streams may draw from; it is saved too."""
    import toy_training

    call = toy_training.Preference.__call__

    def noisy(self: Any, model: Any, batch: Any, clock: Any = None) -> Any:
        loss = call(self, model, batch, clock)
        return type(loss)(loss.total * (1 + torch.rand(())), loss.sums)

    monkeypatch.setattr(toy_training.Preference, "__call__", noisy)
    straight = train()
    anew(toy, "again")
    in_step(4 * 5 + 2, end_process)
    with pytest.raises(Interrupted):
        train()
    same(straight, train())


# -- bad steps


def nan(loss: Any) -> Any:
    return type(loss)(loss.total * float("nan"), loss.sums)


@pytest.mark.parametrize("objective", ["Preference", "SquaredError"])
def test_a_bad_step_of_one_model_leaves_both_unchanged(
    toy: Path, monkeypatch, in_step, objective: str
) -> None:
    seen: list[dict[str, Any]] = []
    discard = TrainedModels.discard

    def look(self: TrainedModels) -> None:
        seen.append(digests(self))
        discard(self)

    updates: list[dict[str, Any]] = []
    update = TrainedModels.update

    def keep(self: TrainedModels, measured: Any) -> None:
        update(self, measured)
        updates.append(digests(self))

    monkeypatch.setattr(TrainedModels, "discard", look)
    monkeypatch.setattr(TrainedModels, "update", keep)
    in_step(4 * 2 + 1, nan, objective)  # in step 3
    train("critic")
    (skipped,) = rows("skip")
    assert skipped["step"] == 3
    assert (
        skipped["reason"]
        == {"Preference": "loss is nan", "SquaredError": "critic loss is nan"}[objective]
    )
    assert seen[0] == updates[1], "step 3 changed something"
    changed = {role for role in updates[1] if updates[1][role] != updates[2][role]}
    assert changed == {"values", "critic"}, "step 4 changes both"


def digests(models: TrainedModels) -> dict[str, list[bytes]]:
    """The weights and states of each model."""
    return {
        role: [t.detach().numpy().tobytes() for t in model.engine.held_tensors()]
        for role, model in models.models.items()
    }


@pytest.mark.parametrize("name", [pytest.param("toy", marks=pytest.mark.slow), "critic"])
def test_a_rollback_leaves_data_out_and_keeps_the_streams_place(
    toy: Path, in_step, name: str
) -> None:
    """Back from step 7 to step 4; the stream's draws up to the bad step are not made again."""
    section = {"toy": "toy", "critic": "toy_critic"}[name]
    in_step(4 * 6 + 1, nan)
    artifact = train(name, f'{section}.guard.action="rollback"')
    (back,) = rows("rollback")
    assert (back["step"], back["samples"]) == (4, [64, 111])
    assert [row["samples"][0] for row in rows() if row["step"] == 5] == [112]
    state = read_stream_state(artifact.path / STREAM)
    assert state.values["next"] == (STEPS + 3) * PAIRS
    one, two = (rng_after(count) for count in (STEPS + 3, STEPS))
    assert state.values["random"] == one != two


def rng_after(steps: int) -> dict[str, Any]:
    from toy_training import Texts

    rng = np.random.default_rng(0)
    for _ in range(steps):
        Texts.draw(rng, PAIRS, 32)
    return dict(rng.bit_generator.state)


def test_a_run_of_bad_steps_ends(toy: Path, in_step) -> None:
    in_step(5, nan)
    with pytest.raises(BadTraining, match=r"toy\.guard\.max_bad") as caught:
        train("toy", "toy.guard.max_bad=1")
    assert caught.value.exit_code == 1


# -- two trained models


def test_two_trained_models_learn_at_their_own_rates(toy: Path, undisturbed) -> None:
    artifact = undisturbed("critic")
    files = artifact.files()
    assert {"critic-model.safetensors", "critic-optimizer.safetensors", "critic-model.json"} <= {
        *files
    }
    product, critic = weights(artifact), weights(artifact, "critic-model.safetensors")
    assert product.keys() == critic.keys()
    assert all(not torch.equal(product[name], critic[name]) for name in product)
    log = map(json.loads, artifact.file("metrics.jsonl").read_text().splitlines())
    steps = [row for row in log if row["event"] == "step"]
    assert max(row["lr"] for row in steps) == 3e-3
    assert max(row["critic.lr"] for row in steps) == 2e-4
    assert all(row["critic.error"] > 0 and row["critic.loss"] > 0 for row in steps)
    # the product is what it is without a critic beside it
    alone = undisturbed("toy")
    assert (
        artifact.file("model.safetensors").read_bytes()
        == alone.file("model.safetensors").read_bytes()
    )
