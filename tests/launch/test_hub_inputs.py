"""Models of a hub: imported once, before there are ranks, and then named by what cannot move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2 import recipe
from bc2.cli import main
from bc2.convert.importing import import_model
from bc2.errors import RefError
from bc2.launch import elastic
from bc2.launch.hub_inputs import IMPORTED, HubInputs, hub_names, pinned_overrides
from bc2.launch.training_verb import TrainingRequest
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.process.signals import LAUNCHED
from bc2.registry import Artifact, Draft, Registry, stage_key

NAME = "hf://house/other@main"
MODEL = ModelConfig(
    vocab_size=1024, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, norm_head=False, context_length=128,
)  # fmt: skip
BEGUN = f"""\
[pretrain]
init = "{NAME}"
length = "3 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
device = "cpu"
eval_tokens = 512
sample_prompts = 0
schedule = {{ warmup = "1 steps" }}
"""


@pytest.fixture
def imports(small: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is imported, in place of a hub, and on.toml in the working directory."""
    asked: list[str] = []

    def stand_in(registry: Registry, source: str | Path, **more: Any) -> Artifact:
        assert more == {}
        asked.append(str(source))
        key = stage_key("checkpoint", 1, {"commit": 40 * "a"}, [])
        found = registry.find("checkpoint", key)
        return register(registry, key) if found is None else found

    monkeypatch.setattr(import_model, "import_model", stand_in)
    Path("on.toml").write_text(BEGUN)
    # This process is started by nobody, whatever tests before this one have left.
    for variable in (IMPORTED, LAUNCHED):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return asked


def register(registry: Registry, key: str) -> Artifact:
    model = Transformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(3))
    with registry.stage(Draft("checkpoint", "other", key, role="base")) as staged:
        save_model(staged.path, MODEL, model.bfloat16().state_dict())
        return staged.publish()


def bc2(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*words])
    said = capsys.readouterr()
    assert (left.value.code or 0) == code, said.err
    return said.out, said.err


def test_a_run_begins_with_what_is_imported(
    imports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = bc2(capsys, "pretrain", "on.toml", "--json")
    registry = Registry.open()
    (base,) = registry.list("checkpoint", "other")
    made = registry.get(json.loads(out)["digest"])
    assert imports == [NAME]
    assert made.manifest.parents[-1] == base.digest
    assert made.manifest.recipe["pretrain"]["init"] == base.ref
    assert made.manifest.recipe["model"]["num_kv_heads"] == 2
    out, _ = bc2(capsys, "pretrain", "on.toml", "--set", f"pretrain.init={base.digest}", "--json")
    assert json.loads(out)["digest"] == made.digest
    # [model] written out is the same run.
    rows = (f"{name} = {json.dumps(value)}\n" for name, value in MODEL.keyed().items())
    Path("on.toml").write_text(f"[model]\n{''.join(rows)}{BEGUN}")
    out, _ = bc2(capsys, "pretrain", "on.toml", "--json")
    assert json.loads(out)["digest"] == made.digest
    assert len(imports) == 2


def test_ranks_and_the_command_that_resumes_name_what_cannot_move(
    imports: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(elastic, "launch", lambda ranks, words, *_, **__: given.append(words))
    init = f"pretrain.init={NAME}"
    bc2(capsys, "pretrain", "on.toml", "--set", init, "--set", "name=two", "--nproc", "2")
    ((*words,),) = given
    (base,) = Registry.open().list("checkpoint", "other")
    assert words == [
        "pretrain", "on.toml", "--set", "name=two", "--set", f'pretrain.init="{base.ref}"'
    ]  # fmt: skip
    assert imports == [NAME]
    bc2(capsys, *words)
    assert imports == [NAME]
    # A rank says of itself what resumes the run: `TrainingRequest` makes both of the same words.
    assert Registry.open().list("checkpoint", "two")


def test_a_recipe_that_another_one_begins_with_may_name_a_hub(
    imports: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranks are told of what was imported, for no override reaches that recipe."""
    Path("then.toml").write_text(BEGUN.replace(NAME, "on.toml"))
    bc2(capsys, "pretrain", "on.toml")
    monkeypatch.setattr(elastic, "launch", lambda *_, **__: None)
    bc2(capsys, "pretrain", "then.toml", "--nproc", "2")
    (base,) = Registry.open().list("checkpoint", "other")
    monkeypatch.setenv(LAUNCHED, "--nproc 2")
    assert HubInputs.of(Registry.open()).refs == {NAME: base.ref}
    imports.clear()
    out, _ = bc2(capsys, "pretrain", "then.toml", "--json")
    assert imports == []
    (first,) = Registry.open().list("checkpoint", "on", finished=True)
    made = Registry.open().get(json.loads(out)["digest"])
    assert made.manifest.parents[-1] == first.digest


def test_ranks_that_others_start_import_nothing(
    imports: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost",
        "MASTER_PORT": 29501,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    _, said = bc2(capsys, "pretrain", "on.toml", code=4)
    assert imports == []
    assert f"bc2 registry import {NAME}" in said
    assert "on.toml:2" in said


@pytest.mark.parametrize(
    "words",
    [
        ("generate", NAME, "a prompt"),
        ("registry", "show", NAME),
        ("plan", "on.toml", "--device", "h100"),
        ("recipe", "check", "on.toml"),
        ("verify", "resume", "on.toml"),
    ],
)
def test_other_commands_say_to_import_it_first(
    imports: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = bc2(capsys, *words, code=4)
    assert f"import it first: bc2 registry import {NAME}" in said
    assert imports == []


@pytest.mark.parametrize(
    "wrong",
    ["pretrain.lenght=3 steps", "pretrain.length=0 steps", "name=of/two", "parallel.zero=9"],
)
def test_nothing_is_imported_for_a_recipe_that_is_wrong(
    imports: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bc2(capsys, "pretrain", "on.toml", "--set", wrong, code=2)
    assert imports == []


def test_nothing_is_imported_for_a_model_that_cannot_fit(
    imports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    huge = {"hidden_size": 65536, "intermediate_size": 2**17, "num_layers": 96, "num_heads": 64}
    rows = "".join(f"{name} = {value}\n" for name, value in {"vocab_size": 600, **huge}.items())
    Path("on.toml").write_text(f"[model]\n{rows}{BEGUN}")
    _, said = bc2(capsys, "pretrain", "on.toml", code=6)
    assert "GB" in said
    assert imports == []


def test_only_what_names_a_hub_is_exchanged(imports: list[str]) -> None:
    written = recipe.load("on.toml")
    assert hub_names(written) == {("pretrain", "init"): NAME}
    hub = HubInputs(Registry.open())
    pinned = hub.pinned(written)
    (ref,) = hub.refs.values()
    kept = ("pretrain.seed=1", f'pretrain.init="{ref}"')
    assert pinned_overrides(("pretrain.seed=1", f"pretrain.init={NAME}"), written, pinned) == kept
    assert hub_names(pinned) == {}
    assert hub.pinned(pinned) == pinned
    assert pinned_overrides(("pretrain.init=other",), pinned, pinned) == ("pretrain.init=other",)
    tokenizer = recipe.load("small.toml", ["tokens.tokenizer=hf://a/b"])
    assert hub_names(tokenizer) == {}


def test_a_list_of_checkpoints_keeps_its_order_and_what_is_not_on_a_hub(
    imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an algorithm that takes several, where each is imported once."""
    find: Callable[[str], str] = lambda name: f"ref of {name}"  # noqa: E731
    monkeypatch.setattr(HubInputs, "_ref", lambda self, name, where: find(name))
    written = recipe.load("on.toml", ['pretrain.init=["a", "hf://b/c", "d.toml"]'])
    pinned = HubInputs(Registry.open()).pinned(written)
    assert pinned.data["pretrain"]["init"] == ["a", "ref of hf://b/c", "d.toml"]
    said = 'pretrain.init=["a", "ref of hf://b/c", "d.toml"]'
    assert pinned_overrides((), written, pinned) == (said,)


def test_a_name_is_no_ref(small: Path) -> None:
    """The command is one to paste, whatever the name."""
    with pytest.raises(RefError, match="hf://a/b; rm x is on a hub") as caught:
        Registry.open().resolve("hf://a/b; rm x", "checkpoint")
    assert "bc2 registry import 'hf://a/b; rm x'" in str(caught.value.todo)


def test_the_request_of_a_recipe_without_a_hub_is_unchanged(imports: list[str]) -> None:
    asked = TrainingRequest("pretrain", "small.toml", ("pretrain.init=other",))
    written = asked.load()
    assert pinned_overrides(asked.overrides, written, written) == asked.overrides
