"""A registered model: each of its bytes is read once, and proved before the model is given out."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bc2.errors import DataError, IntegrityError
from bc2.generate import load
from bc2.generate.load import open_model
from bc2.model.model_config import ModelConfig
from bc2.model.store import CONFIG, WEIGHTS, save_config, save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=48, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, position="alibi"
)
#: Its weights are 4 MiB, of which the rest of a checkpoint is a small part.
LARGE = SMALL.model_copy(update={"vocab_size": 1 << 16})


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["to be or not to be", "that is the question"]),
        model_writer=model,
        vocab_size=18,
        minloglevel=2,
    )
    return model.getvalue()


def checkpoint(home: Path, tokenizer: bytes, config: ModelConfig, files: int = 1) -> Artifact:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    draft = Draft("checkpoint", "m", "0" * 64, position=Position(1, 1), role="base")
    with Registry.open(home).stage(draft) as staged:
        (staged.path / TOKENIZER_FILE).write_bytes(tokenizer)
        if files == 1:
            save_model(staged.path, config, model.state_dict())
        else:
            save_config(staged.path, config)
            names = list(model.state_dict())
            for number in range(files):
                some = {name: model.state_dict()[name] for name in names[number::files]}
                save_file(some, staged.path / f"model-{number + 1:05d}-of-{files:05d}.safetensors")
        return staged.publish()


def weights(artifact: Artifact) -> list[Path]:
    return [artifact.path / name for name in artifact.files("model") if "safetensors" in name]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> Artifact:
    return checkpoint(tmp_path_factory.mktemp("three"), tokenizer, SMALL, files=3)


@pytest.fixture
def artifact(published: Artifact, tmp_path: Path) -> Artifact:
    """A copy to spoil, of three files of weights."""
    shutil.copytree(published.path, tmp_path / "copy")
    return dataclasses.replace(published, path=tmp_path / "copy")


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_has_the_published_weights(
    tmp_path: Path, tokenizer: bytes, files: int, dtype: torch.dtype
) -> None:
    artifact = checkpoint(tmp_path, tokenizer, SMALL, files)
    assert len(weights(artifact)) == files
    expected = {name: t for path in weights(artifact) for name, t in load_file(path).items()}
    with open_model(artifact, CPU, dtype) as loaded:
        state = loaded.model.state_dict()
        assert not loaded.model.training
        assert loaded.tokenizer.vocab_size == 18
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].to(dtype)) for name in state)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_read_once_and_not_mapped(
    tmp_path: Path, tokenizer: bytes, files: int, dtype: torch.dtype
) -> None:
    artifact = checkpoint(tmp_path, tokenizer, LARGE, files)
    size = sum(path.stat().st_size for path in weights(artifact))
    before = bytes_read()
    with open_model(artifact, CPU, dtype):
        read = bytes_read() - before
        maps = Path("/proc/self/maps").read_text()
    assert size <= read < size + (1 << 20) < 2 * size
    assert not any(str(path) in maps for path in weights(artifact))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_an_error_that_names_the_file(
    published: Artifact, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(weights(published)))
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    where = st.integers(0, header - 1) | st.integers(0, len(content) - 1)
    changed = bytearray(content)
    changed[data.draw(where)] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        with (
            pytest.raises(IntegrityError, match="a file does not match its SHA-256") as caught,
            open_model(published, CPU, torch.float32),
        ):
            pytest.fail("given out")
    finally:
        path.write_bytes(content)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER_FILE])
def test_a_flipped_byte_of_the_other_files_too(artifact: Artifact, name: str) -> None:
    content = bytearray((artifact.path / name).read_bytes())
    content[random.Random(4).randrange(len(content))] ^= 1
    (artifact.path / name).write_bytes(content)
    with (
        pytest.raises(IntegrityError, match=f"SHA-256.*{name}"),
        open_model(artifact, CPU, torch.float32),
    ):
        pytest.fail("given out")


@pytest.mark.parametrize("change", [-1, -1000, 1])
def test_a_file_of_another_length_is_an_error(artifact: Artifact, change: int) -> None:
    path = weights(artifact)[1]
    os.truncate(path, path.stat().st_size + change)
    with (
        pytest.raises(IntegrityError, match="and its manifest says") as caught,
        open_model(artifact, CPU, torch.float32),
    ):
        pytest.fail("given out")
    assert caught.value.where == str(path)


def test_a_missing_file_is_named(artifact: Artifact) -> None:
    path = weights(artifact)[2]
    path.unlink()
    with (
        pytest.raises(IntegrityError, match="a file is missing") as caught,
        open_model(artifact, CPU, torch.float32),
    ):
        pytest.fail("given out")
    assert caught.value.where == str(path)


def test_a_file_of_weights_that_was_not_published_is_not_read(artifact: Artifact) -> None:
    save_file({"lm_head.weight": torch.zeros(48, 8)}, artifact.path / WEIGHTS)
    with open_model(artifact, CPU, torch.float32) as loaded:
        assert loaded.model.lm_head.weight.any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"none", "not a complete safetensors file"),
        (None, "the weights do not fit the configuration"),
    ],
)
def test_what_was_published_broken_says_what_is_wrong_with_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    draft = Draft("checkpoint", "m", "0" * 64, position=Position(1, 1), role="base")
    with Registry.open(tmp_path).stage(draft) as staged:
        (staged.path / TOKENIZER_FILE).write_bytes(b"")
        save_config(staged.path, SMALL)
        save_file({"x": torch.zeros(1)}, staged.path / WEIGHTS)
        if content is not None:
            (staged.path / WEIGHTS).write_bytes(content)
        artifact = staged.publish()
    with (
        pytest.raises(IntegrityError, match=message) as caught,
        open_model(artifact, CPU, torch.float32),
    ):
        pytest.fail("given out")
    assert caught.value.where == str(artifact.path / WEIGHTS)


def test_no_model_at_all(tmp_path: Path) -> None:
    draft = Draft("tokenizer", "m", "0" * 64)
    with Registry.open(tmp_path).stage(draft) as staged:
        (staged.path / TOKENIZER_FILE).write_bytes(b"")
        artifact = staged.publish()
    with (
        pytest.raises(DataError, match=f"tokenizer/m holds no {CONFIG}"),
        open_model(artifact, CPU, torch.float32),
    ):
        pytest.fail("given out")


def test_the_gpu_is_current_before_weights_are_read(
    tmp_path: Path, tokenizer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def read(path: Path, device: torch.device, *_: object, **__: object) -> Transformer:
        order.append(f"read to {device}")
        return Transformer(SMALL)

    monkeypatch.setattr(load, "load_model", read)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: order.append(f"set {device}"))
    artifact = checkpoint(tmp_path, tokenizer, SMALL)
    with open_model(artifact, torch.device("cuda", 1), torch.float32):
        assert order == ["set cuda:1", "read to cuda:1"]
