"""`bc2 merge RECIPE`: weights against float64 over whole tensors, and all that goes with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_hf_models import original
from made_models import trained_from, weights_of

from bc2.convert.importing.import_model import import_model
from bc2.generate.load import open_model
from bc2.model.store import load_config
from bc2.registry import Artifact, Registry

Wide = dict[str, np.ndarray]

#: With a NormHead; with biases and a tied head; with norms of heads and bf16 weights.
NAMES = ("baichuan2-7b", "qwen2", "qwen3")


@pytest.fixture
def family(request: pytest.FixtureRequest, home: Path) -> list[Artifact]:
    """An imported base, and three models trained from it."""
    name = getattr(request, "param", "baichuan2-7b")
    original(name).write(home.parent / "original")
    base = import_model(Registry.open(), home.parent / "original", name="base")
    return [base, *(trained_from(base, word, seed) for seed, word in enumerate("abc", 1))]


def recipe(path: Path, method: str, models: Sequence[str], **settings: Any) -> Path:
    lines = ['name = "merged"', "[merge]", f'method = "{method}"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for model in models:
        ref, _, more = model.partition(" ")
        lines += ["[[merge.models]]", f'ref = "{ref}"', *more.split()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def merge(home: Path, bc2: Callable[..., Any]) -> Callable[..., tuple[Artifact, dict[str, Any]]]:
    def run(
        method: str, models: Sequence[str], *options: str, **settings: Any
    ) -> tuple[Artifact, dict[str, Any]]:
        made = recipe(home.parent / "merge.toml", method, models, **settings)
        done = bc2("merge", made, "--json", *options)
        assert done.code == 0, done.err
        said = json.loads(done.out)
        return Registry.open().get(said["digest"]), said

    return run


def wide(artifact: Artifact) -> Wide:
    """Weights in float64; a NormHead's rows as they are used, of unit length."""
    found = {name: tensor.double().numpy() for name, tensor in weights_of(artifact).items()}
    for name, tensor in found.items():
        if has_unit_rows(artifact, name):
            found[name] = tensor / np.linalg.norm(tensor, axis=-1, keepdims=True)
    return found


def agrees(artifact: Artifact, expected: Wide) -> None:
    found = wide(artifact)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if has_unit_rows(artifact, name):
            tensor = tensor / np.linalg.norm(tensor, axis=-1, keepdims=True)
        scale = max(1.0, float(np.abs(tensor).max()))
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=2e-6 * scale, err_msg=name)


def has_unit_rows(artifact: Artifact, name: str) -> bool:
    return name == "lm_head.weight" and load_config(artifact.path).norm_head


def per_tensor(models: Sequence[Wide], function: Callable[..., np.ndarray]) -> Wide:
    return {name: function(*(model[name] for model in models)) for name in models[0]}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_linear(family: list[Artifact], merge: Callable[..., Any]) -> None:
    _, a, b, c = family
    models = ["a weight=0.5", "b weight=0.3", "c weight=0.2"]
    merged, said = merge("linear", models)
    expected = per_tensor([*map(wide, (a, b, c))], lambda x, y, z: 0.5 * x + 0.3 * y + 0.2 * z)
    agrees(merged, expected)
    assert (merged.role, merged.name, merged.parents) == (
        "merged", "merged", (a.digest, b.digest, c.digest),
    )  # fmt: skip
    assert {tensor.dtype for tensor in weights_of(merged).values()} == {torch.float32}
    # It runs, and goes with what it was made of.
    with open_model(merged, torch.device("cpu"), torch.float32) as loaded, torch.no_grad():
        ids = torch.tensor([3, 1, 4, 1, 5])
        logits = loaded.model.logits(loaded.model(ids, torch.tensor([0, 5], dtype=torch.int32), 5))
    assert torch.isfinite(logits).all()
    for file in {"tokenizer.model", "tokenizer.json", "chat.json"} & {*a.files()}:
        assert merged.file(file).read_bytes() == a.file(file).read_bytes()
    again = merge("linear", models)[1]
    assert (said["made"], again["made"], again["digest"]) == (True, False, merged.digest)


def test_uniform_and_normalised_weights(family: list[Artifact], merge: Callable[..., Any]) -> None:
    uniform, _ = merge("linear", ["a", "b", "c"])
    expected = per_tensor([*map(wide, family[1:])], lambda *models: sum(models) / 3)
    agrees(uniform, expected)
    models = ["a weight=2", "b weight=2", "c weight=2"]
    agrees(merge("linear", models, normalise=True)[0], expected)


def test_a_norm_heads_rows_keep_their_mean_length(
    family: list[Artifact], merge: Callable[..., Any]
) -> None:
    """What lengths the parents' rows have changes nothing of what the model says."""
    long = trained_from(
        family[0], "long", 2, change=lambda w: w.update({"lm_head.weight": 7 * w["lm_head.weight"]})
    )
    merged, _ = merge("linear", ["a", "b"])
    of_long, _ = merge("linear", ["a", "long"], "--name", "of-long")
    for name, tensor in wide(merged).items():
        np.testing.assert_allclose(wide(of_long)[name], tensor, atol=1e-6)
    lengths = [weights_of(one)["lm_head.weight"].norm(dim=-1) for one in (family[1], long, of_long)]
    torch.testing.assert_close(lengths[2], (lengths[0] + lengths[1]) / 2)


@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_task_arithmetic(family: list[Artifact], merge: Callable[..., Any]) -> None:
    base, a, b, _ = family
    merged, _ = merge("task-arithmetic", ["a", "b weight=-0.5"], base="base", scale=0.4)
    expected = per_tensor(
        [*map(wide, (base, a, b))], lambda o, x, y: o + 0.4 * ((x - o) - 0.5 * (y - o))
    )
    agrees(merged, expected)
    assert merged.parents == (a.digest, b.digest, base.digest)


def test_task_arithmetic_of_one_and_no_scale(
    family: list[Artifact], merge: Callable[..., Any]
) -> None:
    agrees(merge("task-arithmetic", ["a"], base="base")[0], wide(family[1]))
    agrees(merge("task-arithmetic", ["a"], base="base", scale=0.0)[0], wide(family[0]))


@pytest.mark.parametrize("trim", ["model", "tensor"])
def test_ties(family: list[Artifact], merge: Callable[..., Any], trim: str) -> None:
    base, *models = map(wide, family)
    settings = {"base": "base", "trim": trim, "density": 0.3, "scale": 0.7}
    merged, _ = merge("ties", ["a", "b density=0.6", "c weight=0.5"], **settings)
    tasks = [{name: model[name] - base[name] for name in base} for model in models]
    for task, share in zip(tasks, (0.3, 0.6, 0.3), strict=True):
        groups = [[*base]] if trim == "model" else [[name] for name in base]
        for group in groups:
            numbers = np.sort(np.concatenate([np.abs(task[name]).ravel() for name in group]))
            least = numbers[-max(1, int(share * len(numbers)))] * (1 - 1e-9)
            for name in group:
                task[name] = np.where(np.abs(task[name]) >= least, task[name], 0.0)
    weights = np.array([1.0, 1.0, 0.5])
    expected = {}
    for name in base:
        stack = np.stack([task[name] for task in tasks])
        column = weights.reshape(-1, *[1] * base[name].ndim)
        same = (np.sign(stack) == np.sign((column * stack).sum(0))) & (stack != 0)
        share = (column * same).sum(0)
        mean = (column * stack * same).sum(0) / np.where(share == 0, 1, share)
        expected[name] = base[name] + 0.7 * mean
    agrees(merged, expected)


@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_slerp(family: list[Artifact], merge: Callable[..., Any]) -> None:
    _, a, b, _ = family

    def arc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.arccos(cosine(x, y))
        if np.cos(angle) > 0.9995:
            return 0.7 * x + 0.3 * y
        return (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)

    merged, said = merge("slerp", ["a", "b"], t=0.3)
    one, other = wide(a), wide(b)
    agrees(merged, per_tensor([one, other], arc))
    told = said["facts"]["tensors"]
    assert {name: found["cosine"] for name, found in told.items()} == pytest.approx(
        {name: cosine(one[name], other[name]) for name in one}, abs=2e-6
    )
    for t, end in ((0.0, one), (1.0, other)):
        agrees(merge("slerp", ["a", "b"], t=t)[0], end)


@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_model_stock(
    family: list[Artifact], merge: Callable[..., Any], bc2: Callable[..., Any]
) -> None:
    base, *models = map(wide, family)
    merged, said = merge("model-stock", ["a", "b", "c"], base="base")
    told = said["facts"]["tensors"]
    expected = {}
    for name, start in base.items():
        tasks = [model[name] - start for model in models]
        mean = float(np.mean([cosine(x, y) for x, y in combinations(tasks, 2)]))
        factor = 3 * mean / (1 + 2 * mean)
        assert told[name] == pytest.approx({"cosine": mean, "factor": factor}, abs=1e-4)
        expected[name] = start + factor * np.mean(tasks, 0)
    agrees(merged, expected)
    done = bc2("merge", "merge.toml")
    assert done.code == 0, done.err
    name = "model.layers.1.mlp.down_proj.weight"
    (line,) = (line for line in done.out.splitlines() if line.startswith(name))
    assert line.split()[1:] == [f"{told[name][what]:.4f}" for what in ("cosine", "factor")]
    assert f"{family[0].ref}  checkpoint/base  the base" in done.out


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_is_stored(family: list[Artifact], merge: Callable[..., Any], dtype: str) -> None:
    exact = weights_of(merge("linear", ["a", "b"])[0])
    found = weights_of(merge("linear", ["a", "b"], dtype=dtype)[0])
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert all(torch.equal(found[name], tensor.to(kind)) for name, tensor in exact.items())


def test_lineage_says_what_part_each_has(
    family: list[Artifact], merge: Callable[..., Any], bc2: Callable[..., Any]
) -> None:
    merge("ties", ["a weight=0.25", "b density=0.5"], base="base")
    shown = bc2("registry", "lineage", "merged").out
    assert "checkpoint/a  " in shown
    for word, part in {"a": "weight 0.25, density 0.2", "b": "weight 1, density 0.5"}.items():
        (line,) = (one for one in shown.splitlines() if f"checkpoint/{word} " in one)
        assert line.endswith(part)
    edges = json.loads(bc2("registry", "lineage", "merged", "--json").out)["edges"]
    root = edges[0]["child"]
    parts = [edge["as"] for edge in edges if edge["child"] == root]
    assert parts == ["weight 0.25, density 0.2", "weight 1, density 0.5", "the base"]
