"""Reward models as sequence classifiers of transformers, there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
import transformers
from safetensors.torch import load_file, save_file
from scored import conversations, scores
from torch import Tensor

from bc2.convert.exporting.export_model import export_model
from bc2.convert.exporting.export_request import ExportRequest
from bc2.convert.importing.import_model import import_model
from bc2.convert.proof.score_proof import compare_scores
from bc2.errors import DataError, RunFailed, UsageError
from bc2.registry import Artifact, Registry

TEXTS = conversations()

#: Of each format a model that it has, and transformers' class of it.
FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "Llama"),
    "mistral": ({"sliding_window": 20, "norm_head": False}, "Mistral"),
    "qwen3": ({"qk_norm": True, "norm_head": False}, "Qwen3"),
    "baichuan": ({"position": "alibi"}, "Baichuan"),
}
Auto: Any = transformers.AutoModelForSequenceClassification


def reward_model(registry: Registry, **shape: Any) -> Artifact:
    config = small_checkpoints.shape(head="scalar", **shape)
    state = small_checkpoints.drawn(config)
    state["score.weight"] *= 0.25  # scores of the size that reward models have
    return small_checkpoints.checkpoint(
        registry, config, role="reward", layout="baichuan", state=state
    )


@torch.no_grad()
def theirs(folder: Path, side: str) -> Tensor:
    """Scores in batches of 20 as transformers itself computes them."""
    model = Auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    pad = model.config.pad_token_id
    found = []
    for first in range(0, len(TEXTS), 20):
        texts = TEXTS[first : first + 20]
        longest = max(map(len, texts))
        fill = [[pad] * (longest - len(ids)) for ids in texts]
        rows = [(f + i if side == "left" else i + f) for f, i in zip(fill, texts, strict=True)]
        mask = [[int(t != pad) for t in row] for row in rows]
        given = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        found.append(model(**given).logits[:, 0].double())
    return torch.cat(found)


#: transformers is asked in any case; the full proof also asks it, in a process of its own.
PROOFS = [
    *((format, "tensors") for format in FORMATS),
    *(pytest.param(format, "full", marks=pytest.mark.slow) for format in ("llama", "baichuan")),
]


@pytest.mark.parametrize(("format", "proof"), PROOFS)
def test_a_classifier_scores_as_the_reward_model(home: Path, format: str, proof: str) -> None:
    registry = Registry.open()
    shape, name = FORMATS[format]
    model = reward_model(registry, **shape)
    export, _ = export_model(registry, model, ExportRequest(format, proof=proof))
    said = json.loads((export.path / "config.json").read_bytes())
    assert said["architectures"] == [f"{name}ForSequenceClassification"]
    assert said["pad_token_id"] not in (None, small_checkpoints.tokenizer().eos_id)
    right = scores(model, TEXTS)
    assert right.std() > 0.1
    for side in ("left", "right"):
        torch.testing.assert_close(theirs(export.path, side), right, rtol=0, atol=1e-5)
    back = import_model(registry, export.path, name="back")
    assert back.role == "reward"
    for weight, tensor in load_file(model.path / "model.safetensors").items():
        assert load_file(back.path / "model.safetensors")[weight].equal(tensor), weight
    assert scores(back, TEXTS).equal(right)


def test_bare_weights_keep_the_head(home: Path) -> None:
    registry = Registry.open()
    model = reward_model(registry)
    export, _ = export_model(registry, model, ExportRequest("safetensors"))
    (file,) = export.path.glob("model*.safetensors")
    own = load_file(model.path / "model.safetensors")
    assert load_file(file)["score.weight"].equal(own["score.weight"])


def test_llama_cpp_has_no_place_for_scores(home: Path) -> None:
    registry = Registry.open()
    with pytest.raises(UsageError, match="has a scalar head, and gguf is a format of language"):
        export_model(registry, reward_model(registry), ExportRequest("gguf"))


def _zeroed(folder: Path) -> None:
    """Weights are right when they are read back; afterwards the head is none."""
    (file,) = folder.glob("model*.safetensors")
    weights = load_file(file)
    weights["score.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})


def _swapped(folder: Path) -> None:
    (file,) = folder.glob("model*.safetensors")
    weights = load_file(file)
    table = weights["model.embed_tokens.weight"]
    table[[10, 11, 300]] = table[[300, 10, 11]]
    weights["model.layers.0.mlp.up_proj.weight"] = weights[
        "model.layers.0.mlp.up_proj.weight"
    ].flip(0)
    save_file(weights, file, metadata={"format": "pt"})


def _ends_as_padding(folder: Path) -> None:
    end = small_checkpoints.tokenizer().eos_id
    data = json.loads((folder / "config.json").read_bytes())
    data["pad_token_id"] = end
    (folder / "config.json").write_text(json.dumps(data))


HARMS = [
    _swapped,
    pytest.param(_zeroed, marks=pytest.mark.slow),
    pytest.param(_ends_as_padding, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("harm", HARMS)
def test_the_proof_finds_other_scores(
    home: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    """What reading back does not see: the program's scores alone say it."""
    registry = Registry.open()

    def read_back(folder: Path, *_: object) -> dict[str, Any]:
        harm(folder)
        return {}

    monkeypatch.setattr("bc2.convert.proof.prove._prove_tensors", read_back)
    model = small_checkpoints.checkpoint(
        registry, small_checkpoints.shape(head="scalar"), role="reward"
    )
    with pytest.raises(RunFailed, match=r"conversation \d+ scores"):
        export_model(registry, model, ExportRequest("llama"))
    assert registry.list("export") == []


def test_a_score_that_is_no_number_is_a_difference() -> None:
    _, problems = compare_scores([0.5, 1.0], {"left": [0.5, float("nan")]})
    assert len(problems) == 1
    _, problems = compare_scores([0.5, 1.0], {"right": [0.5, 1.000001]})
    assert not problems


def test_a_classifier_of_other_labels_is_refused(home: Path) -> None:
    registry = Registry.open()
    export, _ = export_model(registry, reward_model(registry), ExportRequest("llama", proof="none"))
    folder = home.parent / "labels"
    folder.mkdir()
    for file in export.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = json.loads((folder / "config.json").read_bytes())
    data["id2label"] = {"0": "bad", "1": "good"}
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="a classifier of 2 labels"):
        import_model(registry, folder)
