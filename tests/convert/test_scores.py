"""A reward model's head survives whatever is done with it: scores of 200 texts to 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
import transformers
from made_adapters import LORA, adapter_of, drawn
from safetensors.torch import load_file, save_file
from scored import conversations, scores, scores_of
from torch import Tensor

from bc2.convert.exporting.export_model import export_model
from bc2.convert.exporting.export_request import ExportRequest
from bc2.convert.merging.merge_adapter import merge_adapter
from bc2.convert.merging.merge_models import merge_models, read_merge
from bc2.errors import IntegrityError, RecipeError
from bc2.model.lora import add_lora
from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import add_adapters
from bc2.model.store import load_model
from bc2.model.transformer import Transformer
from bc2.registry import Registry

TEXTS = conversations()

#: Of Baichuan's two kinds, and of a tied model with grouped heads and biases.
SHAPES: dict[str, dict[str, Any]] = {
    "norm_head": {},
    "alibi": {"position": "alibi"},
    "qwen2": {"norm_head": False, "tied": True, "qkv_bias": True, "num_kv_heads": 2},
}
FACTS = {"score_centre": 0.25, "score_scale": 2.0}


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
    assert right.std() > 0.1, "scores that are alike would hide a lost head"


def with_head(model: Transformer, config: ModelConfig, seed: int = 5) -> Transformer:
    """A model in memory with drawn adapters and the head that lies beside them."""
    with torch.device("meta"):
        built = Transformer(config)
        add_lora(LORA)(built)
    state = {name: one for name, one in model.state_dict().items() if "head" not in name}
    built.load_state_dict({**state, **drawn(config, LORA, seed)}, assign=True)
    return built


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base_head", ["language", "scalar"])
def test_an_adapter_keeps_its_head(home: Path, shape: str, base_head: str) -> None:
    """Beside its base and merged into it, whether that one speaks or scores."""
    registry = Registry.open()
    config = small_checkpoints.shape(**SHAPES[shape])
    base = small_checkpoints.checkpoint(
        registry, config.model_copy(update={"head": base_head}),
        role="base" if base_head == "language" else "reward",
    )  # fmt: skip
    adapter = adapter_of(registry, base, head="scalar", facts=FACTS)
    scalar = config.model_copy(update={"head": "scalar"})
    right = scores_of(with_head(load_model(base.path), scalar), TEXTS)
    close(scores(adapter, TEXTS), right)
    merged, made = merge_adapter(registry, adapter)
    assert made
    assert merged.role == "reward"
    assert {name: merged.manifest.facts[name] for name in FACTS} == FACTS
    close(scores(merged, TEXTS), right)


def test_an_adapter_without_its_head_is_refused(home: Path) -> None:
    registry = Registry.open()
    base = small_checkpoints.checkpoint(registry)
    adapter = adapter_of(registry, base, head="scalar")
    model = load_model(base.path, config=small_checkpoints.shape(head="scalar"))
    weights = load_file(adapter.path / "model.safetensors")
    del weights["score.weight"]
    (home.parent / "cut").mkdir()
    save_file(weights, home.parent / "cut" / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"score\.weight is missing"):
        add_adapters(model, home.parent / "cut", LORA, "cpu", None)


def test_peft_files_say_that_the_head_is_saved(home: Path) -> None:
    registry = Registry.open()
    adapter = adapter_of(registry, small_checkpoints.checkpoint(registry), head="scalar")
    said = json.loads((adapter.path / "adapter_config.json").read_bytes())
    assert (said["task_type"], said["modules_to_save"]) == ("SEQ_CLS", ["score"])
    theirs = load_file(adapter.path / "adapter_model.safetensors")
    ours = load_file(adapter.path / "model.safetensors")
    assert theirs["base_model.model.score.weight"].equal(ours["score.weight"])
    assert len(theirs) == len(ours), "of Baichuan each matrix has one name"


def test_merged_reward_models_have_the_mean_of_their_heads(home: Path) -> None:
    registry = Registry.open()
    base = small_checkpoints.checkpoint(registry)
    one, two = (
        merge_adapter(registry, adapter_of(registry, base, lora, name=name, head="scalar"))[0]
        for name, lora in (("one", LORA), ("two", LORA.model_copy(update={"alpha": 1.5})))
    )
    Path("merge.toml").write_text(
        'name = "mean"\n[merge]\nmethod = "linear"\ndtype = "fp32"\n'
        f'[[merge.models]]\nref = "{one.ref}"\n[[merge.models]]\nref = "{two.ref}"\n'
    )
    mean, _ = merge_models(registry, read_merge("merge.toml"))
    assert mean.role == "reward"
    model, other = load_model(one.path), load_model(two.path)
    with torch.no_grad():
        for weight, beside in zip(model.parameters(), other.parameters(), strict=True):
            weight.lerp_(beside, 0.5)
    close(scores(mean, TEXTS), scores_of(model, TEXTS))


def test_a_model_that_speaks_is_not_merged_with_one_that_scores(home: Path) -> None:
    registry = Registry.open()
    base = small_checkpoints.checkpoint(registry)
    scoring, _ = merge_adapter(registry, adapter_of(registry, base, head="scalar"))
    Path("merge.toml").write_text(
        'name = "both"\n[merge]\nmethod = "linear"\n'
        f'[[merge.models]]\nref = "{base.ref}"\n[[merge.models]]\nref = "{scoring.ref}"\n'
    )
    with pytest.raises(RecipeError, match=r"has a language head, and .* a scalar head"):
        merge_models(registry, read_merge("merge.toml"))


def test_peft_scores_with_the_exported_base(home: Path) -> None:
    """Its own classes read the head out of the adapter; the base is a language model's folder."""
    peft = pytest.importorskip("peft")
    registry = Registry.open()
    base = small_checkpoints.checkpoint(registry, small_checkpoints.shape(norm_head=False))
    export, _ = export_model(registry, base, ExportRequest("llama", proof="none"))
    adapter = adapter_of(registry, base, head="scalar")
    auto: Any = transformers.AutoModelForSequenceClassification
    below = auto.from_pretrained(export.path, num_labels=1, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(below, str(adapter.path)).eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids])).logits[0, 0].double() for ids in TEXTS[:40]]
    close(torch.stack(found), scores(adapter, TEXTS[:40]))
