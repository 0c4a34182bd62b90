"""A conversion as a whole: found again, in the lineage, all or nothing, copied out."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import checkpoint, drawn, shape

from bc2.convert.exporting.model_card import CARD
from bc2.registry import Registry

Bc2 = Callable[..., Any]


def export(bc2: Bc2, *options: object) -> Any:
    return bc2("convert", "made", "--to", "safetensors", *options)


def test_it_is_found_again(home: Path, bc2: Bc2) -> None:
    made = checkpoint(Registry.open())
    first = export(bc2, "--quiet")
    assert first.code == 0, first.err
    assert export(bc2, "--quiet").out == first.out
    assert json.loads(export(bc2, "--json").out)["made"] is False
    other = [
        export(bc2, "--quiet", *options).out
        for options in (["--dtype", "bf16"], ["--no-proof"], ["--name", "x"])
    ]
    assert len({first.out, *other}) == 4
    found = Registry.open().resolve(first.out.strip())
    assert (found.kind, found.name, found.parents) == ("export", "made-safetensors", (made.digest,))
    line = bc2("registry", "lineage", found.ref)
    assert "checkpoint/made" in line.out


def test_how_it_was_proven_is_recorded(home: Path, bc2: Bc2) -> None:
    checkpoint(Registry.open())
    levels = {"--no-proof": "none", "--proof=tensors": "tensors", "--proof=full": "tensors"}
    for option, level in levels.items():
        done = export(bc2, "--json", option)
        assert done.code == 0, done.err
        said = json.loads(done.out)
        assert said["proof"]["level"] == level
        assert Registry.open().get(said["digest"]).manifest.facts["proof"] == level
        assert json.loads(Path(said["path"], "proof.json").read_bytes())["level"] == level


def test_a_weaker_proof_is_not_found_for_a_better_one(
    home: Path, bc2: Bc2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a gguf file that was written where llama.cpp was not."""
    monkeypatch.setattr("bc2.convert.proof.llama_server.find_server", lambda: None)
    checkpoint(Registry.open())
    asked = ("convert", "made", "--to", "gguf", "--json")
    assert json.loads(bc2(*asked).out)["proof"]["level"] == "tensors"
    assert json.loads(bc2(*asked).out)["made"] is False
    monkeypatch.setattr("bc2.convert.proof.llama_server.find_server", lambda: tmp_path / "none")
    assert str(tmp_path / "none") in bc2(*asked).err  # it is run, and is not there
    words = tmp_path / "words.txt"
    keys = set()
    for text in ("One text of some words.", "And another."):
        words.write_text(text)
        keys.add(export(bc2, "--quiet", "--proof-text", str(words)).out)
    assert len(keys) == 2


@pytest.mark.parametrize("form", ["llama", "baichuan", "gguf"])
def test_pieces_that_no_row_is_of(home: Path, bc2: Bc2, form: str) -> None:
    checkpoint(Registry.open(), shape(vocab_size=600))
    done = bc2("convert", "made", "--to", form, "--proof", "tensors")
    assert done.code == 2
    assert "has 640 pieces, and the model 600 rows" in done.err
    assert export(bc2).code == 0


def test_an_upper_case_format_is_guessed(home: Path, bc2: Bc2) -> None:
    checkpoint(Registry.open())
    assert "did you mean 'llama'?" in bc2("convert", "made", "--to", "LLAMA").err


def test_no_folder_below_a_file(home: Path, bc2: Bc2, tmp_path: Path) -> None:
    """It is said before anything is written."""
    checkpoint(Registry.open())
    file = tmp_path / "file"
    file.touch()
    done = export(bc2, "--out", file / "x" / "y")
    assert done.code == 2
    assert f"{file} is no folder" in done.err
    assert Registry.open().list("export") == []


def test_a_folder_is_no_text(home: Path, bc2: Bc2, tmp_path: Path) -> None:
    checkpoint(Registry.open())
    done = export(bc2, "--proof-text", tmp_path)
    assert done.code == 3
    assert "a folder, and no text" in done.err
    assert Registry.open().list("export") == []


def test_the_card_names_no_path(home: Path, bc2: Bc2) -> None:
    made = checkpoint(Registry.open())
    card = Path(json.loads(export(bc2, "--json").out)["path"], CARD).read_text()
    assert made.digest in card
    assert str(home.parent) not in card
    assert card.startswith("---\n")


def test_a_dry_run_writes_nothing(home: Path, bc2: Bc2) -> None:
    checkpoint(Registry.open())
    done = export(bc2, "--dry-run", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert Registry.open().list("export") == []
    written = json.loads(export(bc2, "--json").out)
    sizes = {path.name: path.stat().st_size for path in Path(written["path"]).iterdir()}
    for name, size in said["files"].items():
        assert sizes[name] == size
    assert sizes.keys() - said["files"].keys() == {"README.md", "proof.json", "manifest.json"}
    table = export(bc2, "--dry-run")
    assert "model.safetensors" in table.out
    assert "transformers" in table.out


# -- where it goes


def test_copied_out(home: Path, bc2: Bc2, tmp_path: Path) -> None:
    state = drawn(shape())
    checkpoint(Registry.open(), state=state)
    out = tmp_path / "deep" / "out"
    done = export(bc2, "--out", out)
    assert done.code == 0, done.err
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert not (out / "manifest.json").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_target_that_exists(home: Path, bc2: Bc2, tmp_path: Path, kind: str) -> None:
    checkpoint(Registry.open())
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    done = export(bc2, "--out", out)
    assert done.code == 2
    assert f"{out}" in done.err
    assert "exists" in done.err
    assert Registry.open().list("export") == []


# -- nothing is left


@pytest.fixture
def nothing_more(home: Path) -> Iterator[None]:
    """In the end no export is registered, and nothing lies where artifacts are made."""
    yield
    registry = Registry.open()
    assert registry.list("export") == []
    assert not registry.staging.exists() or list(registry.staging.iterdir()) == []
    assert not (home / "artifacts" / "export").exists() or not any(
        (home / "artifacts" / "export").rglob("*.safetensors")
    )


@pytest.mark.usefixtures("nothing_more")
class TestNothingIsLeft:
    def test_a_full_disk_while_writing(
        self, home: Path, bc2: Bc2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint(Registry.open())

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("bc2.convert.tensor_files.write_at", full)
        done = export(bc2)
        assert done.code == 6
        assert "disk full while writing" in done.err

    def test_no_room_before_anything(
        self, home: Path, bc2: Bc2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint(Registry.open())
        monkeypatch.setattr(
            "bc2.convert.exporting.export_model.shutil.disk_usage",
            lambda path: type("Usage", (), {"free": 1000})(),
        )
        done = export(bc2)
        assert done.code == 6
        assert "are to be written" in done.err

    def test_a_weight_that_is_no_number(self, home: Path, bc2: Bc2) -> None:
        state = drawn(shape())
        state["model.norm.weight"][5] = float("nan")
        checkpoint(Registry.open(), state=state)
        done = export(bc2)
        assert done.code == 3
        assert "model.norm.weight holds NaN or infinity" in done.err

    @pytest.mark.parametrize("at", [-4, 20, 3], ids=["a weight", "the header", "its length"])
    def test_a_damaged_checkpoint(self, home: Path, bc2: Bc2, at: int) -> None:
        path = checkpoint(Registry.open()).path / "model.safetensors"
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            file.write(b"\x7f\x7f\x7f\x7f")
        done = export(bc2)
        assert done.code == 5, done.err
        assert "does not match its SHA-256" in done.err

    def test_a_flipped_bit_in_what_was_written(
        self, home: Path, bc2: Bc2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bc2.files import write_at

        def flip(fd: int, data: memoryview, at: int) -> None:
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 1
            write_at(fd, memoryview(changed), at)

        checkpoint(Registry.open())
        monkeypatch.setattr("bc2.convert.tensor_files.write_at", flip)
        done = export(bc2)
        assert done.code == 1, done.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted(self, home: Path, number: int) -> None:
        large = shape(hidden_size=768, intermediate_size=4096, num_layers=8)
        checkpoint(Registry.open(), large)
        command = [sys.executable, "-m", "bc2", "convert", "made", "--to", "safetensors"]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        staging = Registry.open().staging
        for _ in range(3000):
            if running.poll() is not None or any(staging.glob("*/model.safetensors")):
                break
            time.sleep(0.01)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 128 + number, err


def test_what_a_killed_one_left_is_removed_by_the_next(home: Path, bc2: Bc2) -> None:
    registry = Registry.open()
    checkpoint(registry)
    left = registry.staging / "1-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert export(bc2).code == 0
    assert not left.exists()
