"""`bc2 serve` as a process: its address, its ends, and what it refuses before it loads anything."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import warmed
from bc2.commands.serve import _api_keys
from made_adapters import adapter_of

from bc2.registry import Draft, Registry

Bc2 = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    base = made_checkpoints.register(home, "base", made_checkpoints.drawn(window=100_000))
    registry = Registry.open(home)
    adapter_of(registry, base, name="one")
    with registry.stage(Draft("checkpoint", "judge", "0" * 64, role="reward")) as staged:
        (staged.path / "model.safetensors").write_bytes(b"x")
        staged.publish()
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    monkeypatch.chdir(tmp_path)


@contextmanager
def serving(*args: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its address."""
    command = [
        sys.executable,
        "-m",
        "bc2",
        "serve",
        *map(str, args),
        "--port",
        "0",
        "--cache-memory",
        "64MB",
        "--json",
    ]
    process = warmed.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def post(url: str, body: Any, **headers: str) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def test_a_process_serves_with_a_key_until_a_signal_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sesame")
    asked = {"model": "mine", "prompt": "答案", "max_tokens": 2}
    with serving("mine=one", "base", "--api-key-env", "THE_KEY") as (process, url):
        assert len(post(url, asked, Authorization="Bearer sesame")["choices"]) == 1
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(url, asked)
        process.send_signal(signal.SIGTERM)
        code, told = ended(process)
    assert code == 0
    assert "serving mine, base on cpu" in told
    assert "all requests were answered" in told
    assert "sesame" not in told


def test_what_was_broken_off_is_said_with_the_signals_code() -> None:
    with serving("base", "--grace", "0.2") as (process, url):
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 90_000,
                           "ignore_eos": True}).encode()  # fmt: skip
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as made:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            made.sendall(head.encode() + b"\r\n" + body)
            while "bc2_cache_blocks_used" not in (text := _metrics(url)) or (
                'bc2_cache_blocks_used{model="base"} 0.0' in text
            ):
                pass
            process.send_signal(signal.SIGINT)
            assert made.recv(100).startswith(b"HTTP/1.1 503")
        code, told = ended(process)
    assert code == 128 + signal.SIGINT
    assert "requests that have 0.2 seconds to end: " in told
    assert "broken off, as they had not ended within 0.2 seconds: 1\n" in told


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        return str(reply.read().decode())


def test_a_port_in_use_is_said_before_anything_is_loaded(bc2: Bc2) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = bc2("serve", "base", "--port", other.getsockname()[1])
    assert (done.code, done.out) == (2, "")
    assert "the port is in use" in done.err
    assert "loading" not in done.err


WRONG = [
    (["judge"], 4, "of role reward"),
    (["nothing"], 4, "nothing"),
    (["base", "base"], 2, "two models would be served as 'base'"),
    (["a=base", "a=one"], 2, "two models would be served as 'a'"),
    (["=base"], 2, "a model without a name"),
    (["base", "--host", "no.such.host.invalid"], 2, "no address of this machine"),
    (["base", "--api-key-env", "NO_SUCH_VARIABLE"], 2, "no key is there"),
    (["base", "--api-key-file", "nowhere.txt"], 2, "the keys cannot be read"),
    (["base", "--api-key-file", "empty.txt"], 2, "no key is there"),
    (["base", "--api-key-file", "strange.txt"], 2, "other characters"),
    (["base", "--api-key-file", "a", "--api-key-env", "B"], 2, "not from both"),
    (["base", "--allow-origin", "localhost:3000"], 2, "is no origin"),
    (["base", "--max-body", "much"], 2, "--max-body cannot read"),
    (["base", "--max-body", "1 GB"], 2, "more than 256 MiB"),
    (["base", "--cache-memory", "100"], 2, "holds no block"),
    (["base", "--time-limit", "0"], 2, "--time-limit"),
    (["base", "--time-limit", "inf"], 2, "--time-limit"),
    (["base", "--grace", "inf"], 2, "--grace"),
    (["b\udcff=base"], 2, "cannot be printed"),
    (["a\nb=base"], 2, "cannot be printed"),
    (["base", "--port", "70000"], 2, "--port"),
    (["base", "--device", "tpu"], 2, "tpu"),
]


@pytest.mark.parametrize(("args", "code", "said"), WRONG, ids=lambda one: str(one)[:40])
def test_wrong_inputs_are_one_message(bc2: Bc2, args: list[str], code: int, said: str) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("strange.txt").write_text("schlüssel\n")
    done = bc2("serve", *args, *([] if "--port" in args else ["--port", "0"]))
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "schlüssel" not in done.err


def test_keys_are_read_as_editors_write_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xef\xbb\xbfsesame\r\n\r\n  other \r\n")
    assert _api_keys(path, None) == ("sesame", "other")


def test_an_address_that_others_reach_without_a_key_is_warned_of(bc2: Bc2) -> None:
    done = bc2("serve", "base", "--port", 0, "--host", "0.0.0.0", "--cache-memory", "100")
    assert "warning: anybody who reaches 0.0.0.0 may ask" in done.err
