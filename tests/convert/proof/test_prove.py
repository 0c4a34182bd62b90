"""A whole proof: levels, what they need, what they say, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import made_export
import pytest
from made_export import Held

from bc2.convert.exporting.bare_weights import plan_bare_weights
from bc2.convert.exporting.export_request import ProofLevel
from bc2.convert.proof import open_consumer, prove, worker_process
from bc2.convert.proof.prove import check_room
from bc2.convert.proof.shown import shown
from bc2.errors import DataError, ResourceError, RunFailed, UsageError

HeldModel = Callable[[str], Held]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the engines
    monkeypatch.setattr("bc2.convert.proof.program_proof.STRINGS", 1200)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "proof.txt"
    path.write_text("A page of a person's own text.\n\n一页自己的文字。\n" * 4, encoding="utf-8")
    return path


def test_all_of_it(held: HeldModel, tmp_path: Path, text: Path) -> None:
    one = held("baichuan2-7b")
    plan = one.plan("bf16")
    plan = replace(plan, texts=_llama_texts(one))
    folder = made_export.write(plan, one.source, tmp_path / "out")
    before = sorted(folder.iterdir())
    assert check_room(one.source, plan, "full") == "full"
    facts = prove.prove(folder, one.source, plan, level="full", data=text)
    assert sorted(folder.iterdir()) == before
    assert json.loads(json.dumps(facts)) == facts
    assert facts["level"] == "full"
    assert facts["program"] == {"name": "transformers", "version": version("transformers")}
    assert facts["text"]["title"] == "proof.txt"
    assert facts["model"]["greedy_tokens"] == 4 * 64
    assert facts["model"]["largest_difference"] < facts["model"]["difference_bound"] == 1e-3
    assert facts["tokenizer"]["strings"] == 1200
    assert facts["chat"] == {"conversations": 10, "layout": "baichuan"}
    rows = dict(shown(facts))
    assert rows["tensors"] == "21 (0.2 MB) read back, each as the checkpoint has it"
    assert rows["program"] == f"transformers {version('transformers')}, on proof.txt"


def _llama_texts(one: Held) -> dict[str, bytes]:
    from bc2.convert.exporting.formats import FORMATS

    return dict(FORMATS["llama"].plan(one.source, None, 1 << 30).texts)


@contextmanager
def _here(engine: str, scratch: Path, **loads: Any) -> Iterator[Any]:
    """An engine in this process, which has loaded its libraries."""
    yield worker_process.load({"engine": engine, **loads})


def test_another_model_is_refused(
    held: HeldModel, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bc2.convert.proof.program_proof.open_worker", _here)
    monkeypatch.setattr(open_consumer, "open_worker", _here)
    one = held("llama-tied")
    plan = one.plan()
    config = json.loads(plan.texts["config.json"])
    config["rms_norm_eps"] = 0.1
    wrong = replace(plan, texts={**plan.texts, "config.json": json.dumps(config).encode()})
    folder = made_export.write(wrong, one.source, tmp_path / "out")
    with pytest.raises(RunFailed, match="not the model: log-probabilities differ by") as raised:
        prove.prove(folder, one.source, wrong, level="full", data=text)
    assert raised.value.exit_code == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2", "qwen2-yarn", "qwen3"])
def test_every_family_on_bc2s_own_pages(
    held: HeldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    monkeypatch.setattr("bc2.convert.proof.program_proof.STRINGS", 10_000)
    one = held(name)
    plan = one.plan(dtype)  # type: ignore[arg-type]
    folder = made_export.write(plan, one.source, tmp_path / "out")
    facts = prove.prove(folder, one.source, plan, level="full", data=None)
    assert facts["model"]["tokens"] > 3000
    assert facts["tokenizer"]["strings"] == 10_000


def test_tensors_alone(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    facts = prove.prove(folder, one.source, plan, level="tensors", data=None)
    assert facts["tensors"] == {"tensors": 21, "bytes": plan.sizes["model.safetensors"]}
    assert "model" not in facts
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFailed, match="is not what the checkpoint has"):
        prove.prove(folder, one.source, plan, level="tensors", data=None)
    assert prove.prove(folder, one.source, plan, level="none", data=None)["level"] == "none"


def test_other_files_are_read_back_too(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RunFailed, match=r"tokenizer\.json is not what was to be written"):
        prove.prove(folder, one.source, plan, level="tensors", data=None)


# -- what a proof needs ---------------------------------------------------------------------


def test_bare_weights_have_no_program(held: HeldModel, tmp_path: Path) -> None:
    one = held("baichuan2-13b")
    plan = plan_bare_weights(one.source, "fp16", 1 << 30)
    assert check_room(one.source, plan, "full") == "tensors"
    folder = made_export.write(plan, one.source, tmp_path / "out")
    facts = prove.prove(folder, one.source, plan, level="tensors", data=None)
    assert facts["tensors"]["tensors"] == len(one.source.weights)


@pytest.mark.parametrize("level", ["tensors", "none"])
def test_less_needs_nothing(
    held: HeldModel, monkeypatch: pytest.MonkeyPatch, level: ProofLevel
) -> None:
    monkeypatch.setattr(prove, "host_available", lambda: 0)
    monkeypatch.setattr(open_consumer.importlib.util, "find_spec", lambda name: None)
    one = held("llama3")
    assert check_room(one.source, one.plan(), level) == level


def test_too_little_memory(held: HeldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    one = held("llama3")
    plan = one.plan("bf16")
    numbers = sum(target.shape[0] * (target.shape[1:] or (1,))[0] for target in plan.tensors)
    needed = 4 * numbers + (1 << 30)
    monkeypatch.setattr(prove, "host_available", lambda: needed)
    assert check_room(one.source, plan, "full") == "full"
    monkeypatch.setattr(prove, "host_available", lambda: needed - 1)
    with pytest.raises(ResourceError, match=r"takes 1\.1 GB of memory, and 1\.1 GB are free") as e:
        check_room(one.source, plan, "full")
    assert "--proof tensors" in str(e.value)


@pytest.mark.parametrize("found", ["none", "4.57.1"])
def test_transformers_is_missing_or_old(
    held: HeldModel, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    if found == "none":
        monkeypatch.setattr(open_consumer.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(open_consumer, "version", lambda name: found)
    one = held("llama3")
    with pytest.raises(UsageError, match=r'pip install "bc2\[convert\]"') as raised:
        check_room(one.source, one.plan(), "full")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "match"), [(b"\xff\xfe", "not UTF-8"), (b" \n", "no text"), (None, "no such file")]
)
def test_a_text_that_is_none(
    held: HeldModel, tmp_path: Path, data: bytes | None, match: str
) -> None:
    one = held("llama3")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=match):
        prove.prove(folder, one.source, plan, level="full", data=path)
