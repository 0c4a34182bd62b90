"""Adapters in a run: trained while the base is frozen, saved alone, resumed beside the base."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import bc2

from bc2 import recipe
from bc2.data.loader import Loader
from bc2.errors import Interrupted, RecipeError
from bc2.generate.load import open_model
from bc2.model.adapters import is_adapters
from bc2.model.saved_adapter import SavedAdapter
from bc2.parallel.state import Stored
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.train.logs.log_rows import METRICS, read_rows
from bc2.train.training_settings import TrainingSettings

ADAPTED = """\
base = "small.toml"
name = "adapted"

[adapted]
length = "8 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
checkpoint_every = "2 steps"
eval_every = "4 steps"
eval_tokens = 2048
sample_prompts = 0
optimizer = { learning_rate = 3e-2 }
schedule = { warmup = "2 steps" }
lora = { rank = 2, alpha = 4, targets = ["W_pack", "up_proj"] }
"""


def train(name: str, *overrides: str) -> Artifact:
    loaded = recipe.load(name, overrides)
    return Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])


@pytest.fixture
def base(toy: Path) -> Artifact:
    """A base model, and adapted.toml that begins with it."""
    made = train("small.toml", "pretrain.length=8 steps")
    (toy / "adapted.toml").write_text(f'{ADAPTED}init = "{made.digest}"\n')
    return made


def heldout(artifact: Artifact) -> list[float]:
    rows = read_rows(artifact.file(METRICS))
    return [row["heldout_loss"] for row in rows if row["event"] == "eval"]


def test_adapters_are_trained_saved_alone_and_resumed(
    base: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train("adapted.toml")
    found = heldout(straight)
    # It begins as the base, for B is zero then, and becomes another model.
    assert found[0] == heldout(base)[-1]
    assert len(set(found)) == 3
    saved = Stored.open([straight.path / "model.safetensors"]).shapes
    assert saved
    assert all(map(is_adapters, saved))
    assert straight.manifest.role == "adapter"
    assert base.digest in straight.manifest.parents
    settings = TrainingSettings.of(recipe.load("adapted.toml"))
    said = SavedAdapter.of(straight)
    assert (said.base, said.lora.rank, said.lora.targets) == (base.digest, 2, ("W_pack", "up_proj"))
    files = ("model.safetensors", "optimizer.safetensors")
    size = sum((straight.path / name).stat().st_size for name in files)
    assert settings.checkpoint_bytes < size < settings.checkpoint_bytes + 12_000  # headers

    for artifact in Registry.open().list("checkpoint", "adapted"):
        Registry.open().remove(artifact)
    plain = Loader.batch

    def batch(self: Loader, first: int, count: int) -> object:
        if first == 44:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, first, count)

    with monkeypatch.context() as stopping:
        stopping.setattr(Loader, "batch", batch)
        with pytest.raises(Interrupted):
            train("adapted.toml")
    (stopped, *_) = Registry.open().list("checkpoint", "adapted", finished=False)
    assert stopped.position is not None
    assert 0 < stopped.position.step < 8
    assert train("adapted.toml").digest == straight.digest


def test_a_run_goes_on_with_an_adapter_or_with_what_it_makes_of_its_base(base: Artifact) -> None:
    """Adapters that are equal are trained on; else they are merged into what is trained."""
    first = train("adapted.toml")
    begun = [f"adapted.init={first.digest}", "name=second"]
    with pytest.raises(RecipeError, match=r"rank 2 with alpha 4 beside W_pack, up_proj") as caught:
        train("adapted.toml", *begun, "adapted.lora.rank=3")
    assert f"bc2 merge --adapter {first.ref}" in str(caught.value)
    second = train("adapted.toml", *begun)
    assert heldout(second)[0] == heldout(first)[-1]
    assert SavedAdapter.of(second).base == base.digest
    assert second.parents[-1] == first.digest
    text = (Path("adapted.toml").read_text()).replace("lora =", "guard = {} #")
    Path("whole.toml").write_text(text)
    whole = train("whole.toml", *begun, "name=whole")
    assert whole.role == "base"
    assert heldout(whole)[0] == pytest.approx(heldout(first)[-1], rel=1e-6)
    assert heldout(whole)[0] != heldout(base)[-1]
    with open_model(whole, torch.device("cpu"), torch.float32) as loaded:
        assert not any(map(is_adapters, loaded.model.state_dict()))


def peft_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    """By our names; the base has a NormHead, so PEFT's have W_pack too."""
    found = load_file(artifact.file("adapter_model.safetensors"))
    plain = {name.removeprefix("base_model.model.").removesuffix(".weight") for name in found}
    return {
        name.replace(".lora", ".adapter.lora"): found[f"base_model.model.{name}.weight"]
        for name in plain
    }


@pytest.mark.slow
def test_tensor_parallel_ranks_write_the_adapter_of_one(base: Artifact) -> None:
    alone = train("adapted.toml")
    Registry.open().tag(alone, "alone")
    told = bc2(
        "adapted", "adapted.toml", "--nproc", "2", "--set", "parallel.tensor=2", "--fresh", "--json"
    )
    both = Registry.open().get(json.loads(told)["digest"])
    assert heldout(both) == pytest.approx(heldout(alone), rel=1e-5)
    ours, theirs = (load_file(each.file("model.safetensors")) for each in (both, alone))
    assert peft_of(both).keys() == ours.keys() == theirs.keys()
    for name, tensor in peft_of(both).items():
        assert torch.equal(tensor, ours[name]), name
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_five_times_it_ends_in_the_same_bits(base: Artifact) -> None:
    found = json.loads(bc2("verify", "resume", "adapted.toml", "--steps", "8", "--kills", "5",
                           "--ranks", "2", "--json"))  # fmt: skip
    assert found["holds"]
    assert all(one["same"] for one in found["comparisons"])


@pytest.mark.slow
def test_plan_and_bench_count_what_is_trained(base: Artifact) -> None:
    plan = json.loads(bc2("plan", "adapted.toml", "--device", "h100", "--json"))
    trained = plan["trained_parameters"]
    role = TrainingSettings.of(recipe.load("adapted.toml")).models[0]
    shape = role.model
    width, rows, inner = shape.hidden_size, shape.packed_rows, shape.intermediate_size
    assert trained == shape.num_layers * 2 * (2 * width + rows + inner)
    assert plan["disk"]["checkpoint"] == 12 * trained
    measured = json.loads(
        bc2("bench", "adapted.toml", "--steps", "1", "--rounds", "1", "--no-checkpoint",
            "--no-save", "--json")
    )  # fmt: skip
    (ours,) = measured["contenders"]
    assert ours["failed"] is None
    assert measured["flops_per_token"] < shape.flops_per_token(64)
