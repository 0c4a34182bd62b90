"""An engine in a process of its own: its memory is free again when it is closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from bc2.convert.proof.consumer import Padding, Said
from bc2.errors import RunFailed
from bc2.sandbox.kernel import die_with_parent

#: Lines of what a process that failed printed last.
_LAST_LINES = 4

#: No engine is to ask a network, or a GPU: fp32 is compared as the CPU computes it.
_ALONE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1",
}  # fmt: skip


class Worker:
    """A `Consumer` that asks the one in the process.

    Args:
        scratch: a folder for large answers, which stay there.
    """

    def __init__(self, process: subprocess.Popen[str], scratch: Path, said: IO[bytes]):
        self._process = process
        self._scratch = scratch
        self._said = said
        self._count = 0

    def begin(self, engine: str, **loads: Any) -> None:
        """Have it load a model. Raises: RunFailed: it does not, or died."""
        self.name = engine
        found = self._ask({"engine": engine, **loads})
        self.name, self.version = str(found["name"]), str(found["version"])

    def log_probs(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        file = self._scratch / f"{self.name}-{self._count}.npy"
        self._count += 1
        self._ask({"method": "log_probs", "ids": list(ids), "file": str(file)})
        return cast("npt.NDArray[np.float32]", np.load(file, mmap_mode="r"))

    def scores(self, texts: Sequence[Sequence[int]], padding: Padding) -> list[float]:
        asked = {"method": "scores", "texts": [list(ids) for ids in texts], "padding": padding}
        return cast("list[float]", self._ask(asked)["answer"])

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        asked = {"method": "greedy", "ids": list(ids), "count": count}
        return cast("list[int]", self._ask(asked)["answer"])

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        asked = {"method": "encode", "texts": list(texts)}
        return cast("list[list[int] | None]", self._ask(asked)["answer"])

    def chat(self, messages: Sequence[Said], *, generation_prompt: bool) -> list[int] | None:
        asked = {
            "method": "chat", "messages": list(messages), "generation_prompt": generation_prompt,
        }  # fmt: skip
        return cast("list[int] | None", self._ask(asked)["answer"])

    def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = self._process.wait()
            raise RunFailed(
                f"{self.name} ended with {code} during the proof{self._last_words()}",
                todo="if the machine's memory ran out, ask for --proof tensors",
            )
        found = cast("dict[str, Any]", json.loads(line))
        if "error" in found:
            raise RunFailed(f"{self.name} failed in the proof: {found['error']}")
        return found

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return ": " + " / ".join(lines[-_LAST_LINES:]) if lines else ""


@contextmanager
def open_worker(engine: str, scratch: Path, **loads: Any) -> Iterator[Worker]:
    """Start a process and have it load a model; it ends with the context, or with this process.

    Args:
        engine, loads: see `bc2.convert.proof.worker_process`.

    Raises:
        RunFailed: it does not load it.
    """
    command = [sys.executable, "-P", "-m", "bc2.convert.proof.worker_process"]
    # Code that comes with a model is copied to where it is imported from.
    alone = {**os.environ, **_ALONE, "HF_MODULES_CACHE": str(scratch / "modules")}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            encoding="utf-8", env=alone, preexec_fn=die_with_parent,
        ) as process,
    ):  # fmt: skip
        try:
            worker = Worker(process, scratch, said)
            worker.begin(engine, **loads)
            yield worker
        finally:
            process.kill()
