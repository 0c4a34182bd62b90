"""The shape of Baichuan2-7B as its authors publish it is the one of `recipes/7b.toml`.

Plans and benchmarks take either: its own [model], or that of such a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bc2.bench.bench_plan import make_bench_plan
from bc2.cli import main
from bc2.model.model_config import ModelConfig, differences
from bc2.model.store import load_config, save_config
from bc2.pipeline.reach import load_for, load_training
from bc2.recipe import load
from bc2.registry import Artifact, Draft, Registry, stage_key

#: As config.json has it on the hub, by our names and with what follows from it written out.
BAICHUAN2_7B = ModelConfig(
    vocab_size=125_696, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32,
    num_kv_heads=32, head_dim=128, position="rope", rope_base=10_000.0, context_length=4096,
    norm_eps=1e-6, norm_head=True, initializer_range=0.02, qkv_bias=False, qk_norm=False,
    tied=False, rope_scaling=None, sliding_window=None,
)  # fmt: skip
#: A run of `recipes/7b.toml` that begins with such a model, without its [model].
BEGUN = """\
name = "7b"

[pretrain]
init = "imported"
length = "2.6T tokens"
batch_tokens = 4_194_304
micro_batch = 1
sequence_length = 4096
precision = "bf16"
checkpoint_every = "1000 steps"
keep_checkpoints = 0

[parallel]
zero = 2
"""
PLAN = ("--gpus", "8", "--device", "h100")


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A checkpoint of that shape whose weights cannot be read."""
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("begun.toml").write_text(BEGUN)
    key = stage_key("checkpoint", 1, {}, [])
    with Registry.open().stage(Draft("checkpoint", "imported", key, role="base")) as staged:
        save_config(staged.path, BAICHUAN2_7B)
        (staged.path / "model.safetensors").write_bytes(b"no weights")
        return staged.publish()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    said = capsys.readouterr()
    assert not left.value.code, said.err
    return json.loads(said.out)


def test_it_is_the_recipes_own_model(imported: Artifact) -> None:
    own = load("7b").get(ModelConfig)
    assert own == BAICHUAN2_7B == load_config(imported.path)
    assert own.keyed() == BAICHUAN2_7B.keyed()
    assert differences(own, load_config(imported.path)) == {}
    assert own.num_params() == 7_505_973_248


def test_a_plan_is_the_same_with_either(
    imported: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    own = printed(capsys, "plan", "7b", *PLAN)
    assert own["parameters"] == 7_505_973_248
    assert printed(capsys, "plan", "begun.toml", *PLAN) == own
    for init in ("imported", imported.ref, "hf://baichuan-inc/Baichuan2-7B-Base"):
        # Its own [model] says all that a plan needs.
        assert printed(capsys, "plan", "7b", "--set", f"pretrain.init={init}", *PLAN) == own


def test_a_benchmark_is_the_same_with_either(imported: Artifact) -> None:
    asked: dict[str, Any] = {
        "steps": 1, "rounds": 1, "against": None, "peers": None, "ours": None, "layouts": (),
        "checkpointing": None, "peer_environment": "same", "documents": 0, "checkpoint": False,
    }  # fmt: skip
    sets = ["pretrain.compile=false", "pretrain.device=cpu"]
    (own,) = make_bench_plan(load_training("7b", sets), **asked).contenders
    (begun,) = make_bench_plan(load_training("begun.toml", sets), **asked).contenders
    (also,) = make_bench_plan(
        load_training("7b", [*sets, "pretrain.init=imported"]), **asked
    ).contenders
    assert own.model == begun.model == also.model == BAICHUAN2_7B
    assert without_init(own) == without_init(also)
    generated = load_for("checkpoint", "begun.toml", reads=("model",))
    assert generated.get(ModelConfig) == BAICHUAN2_7B


def without_init(spec: Any) -> Any:
    """A contender without what it begins with, which a benchmark does not read."""
    return spec.model_copy(update={"training": spec.training.model_copy(update={"init": None})})
