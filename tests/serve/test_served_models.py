"""Several models of one server: their names, the weights that they share, and their answers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import torch
from made_adapters import adapter_of
from running_server import serving

from bc2.errors import RefError, UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.load import open_model
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.lora_config import LoraConfig
from bc2.registry import Artifact, Registry
from bc2.serve.served_models import named_artifacts, open_models

CPU = torch.device("cpu")
SMALL = EngineConfig(cache_bytes=4 << 20, max_running=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    base = made_checkpoints.register(home, "base", made_checkpoints.drawn(window=256))
    registry = Registry.open(home)
    for number, name in enumerate(("one", "two"), 2):
        adapter_of(registry, base, LoraConfig(rank=number, alpha=8.0 * number), name=name)
    made_checkpoints.register(home, "other", made_checkpoints.drawn(seed=7, window=256))
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))


def artifacts(home: Path, *refs: str) -> dict[str, Artifact]:
    return named_artifacts(Registry.open(home), refs)


def said_alone(artifact: Artifact, prompt: str) -> list[int]:
    with open_model(artifact, CPU, torch.float32) as loaded:
        engine = InferenceEngine(loaded.model, SMALL, eos_id=loaded.tokenizer.eos_id)
        settings = SamplingConfig(temperature=0, max_new_tokens=8)
        ids = loaded.tokenizer.encode_whole(prompt)
        (answer,) = engine.generate([Request(ids, settings)])
        return answer.continuations[0].ids


@pytest.mark.parametrize("refs", [("one", "two", "base"), ("base", "two", "one"), ("two", "one")])
def test_adapters_share_the_weights_of_their_base(home: Path, refs: tuple[str, ...]) -> None:
    with open_models(artifacts(home, *refs), CPU, torch.float32, SMALL) as models:
        weights = [model.lane.engine.runner.model.model.embed_tokens.weight for model in models]
        assert len({weight.data_ptr() for weight in weights}) == 1
        assert len({id(model.lane.engine.runner.model) for model in models}) == len(refs)


def test_each_of_them_answers_as_it_does_alone(home: Path) -> None:
    named = artifacts(home, "one", "b=base", "two", "other")
    wanted = {name: said_alone(artifact, "答案是 A") for name, artifact in named.items()}
    assert len({tuple(ids) for ids in wanted.values()}) == 4
    with serving(home, "one", "b=base", "two", "other", engine=SMALL) as server:
        for name, ids in wanted.items():
            asked = {"model": name, "prompt": "答案是 A", "max_tokens": 8, "temperature": 0,
                     "return_token_ids": True}  # fmt: skip
            assert server.post("/v1/completions", asked).json["choices"][0]["token_ids"] == ids


def test_the_cache_is_shared_out(home: Path) -> None:
    with open_models(artifacts(home, "one", "base"), CPU, torch.float32, SMALL) as models:
        sizes = [model.lane.engine.memory.cache.data.nbytes for model in models]
    assert sizes[0] == sizes[1] <= (4 << 20) // 2


def test_a_window_is_no_larger_than_the_cache(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(home, "base", engine=EngineConfig(cache_bytes=32 << 10)) as server:
        model = server.models.by_name["base"]
        window = model.lane.engine.cache_tokens
        assert window == model.window < 256
        assert f"the cache of 'base' holds {window} tokens" in capfd.readouterr().err
        asked = {"model": "base", "prompt": [5] * 10, "max_tokens": 1000, "ignore_eos": True}
        reply = server.post("/v1/completions", asked).json
        assert reply["usage"]["completion_tokens"] == window + 1 - 10
        long = server.post("/v1/completions", {**asked, "prompt": [5] * (window + 1)})
        assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
        assert server.post("/v1/completions", {**asked, "prompt": [5] * window}).status == 200


def test_what_is_free_is_shared_out_after_all_weights_are_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def load(artifact: Artifact, *args: Any, **kwargs: Any) -> Any:
        told.append(artifact.name)
        return open_model(artifact, *args, **kwargs)

    def free(_: torch.device) -> int:
        told.append("free")
        return 4 << 20

    monkeypatch.setattr("bc2.serve.served_models.open_model", load)
    monkeypatch.setattr("bc2.serve.served_models.device_available", free)
    unset = EngineConfig(max_running=4)
    with open_models(artifacts(home, "one", "other"), CPU, torch.float32, unset) as models:
        sizes = [model.lane.engine.memory.cache.data.nbytes for model in models]
    assert told == ["base", "one", "other", "free"]
    assert sizes[0] == sizes[1] == 1 << 20


def test_the_engines_thread_has_the_models_gpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins with the first GPU, whichever the one is that started it has."""
    told: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        "bc2.serve.engine_thread.make_current",
        lambda device: told.append((threading.current_thread().name, device)),
    )
    with serving(home, "base", engine=SMALL):
        pass
    assert told == [("bc2-engine", CPU)]


def test_names_are_the_artifacts_unless_given(home: Path) -> None:
    assert list(artifacts(home, "base", "x=one", "two")) == ["base", "x", "two"]
    assert list(artifacts(home)) == ["other"]  # the newest
    with pytest.raises(UsageError, match="two models would be served as 'base'"):
        artifacts(home, "one", "base", "base")
    with pytest.raises(RefError):
        artifacts(home, "x=nothing")


def test_a_baichuan_chat_is_sampled_as_the_released_ones_are(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = {"chat.json": b'{"layout": "baichuan"}'}
    made_checkpoints.register(tmp_path, "talker", made_checkpoints.drawn(), files=layout)
    released = {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05}
    with open_models(artifacts(tmp_path, "talker"), CPU, torch.float32, SMALL) as models:
        model = models.by_name["talker"]
        assert (model.own, model.chat_own) == ({}, released)
    assert "temperature 0.3, top_k 5, top_p 0.85, repetition_penalty 1.05" in capfd.readouterr().err
