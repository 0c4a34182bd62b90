"""`bc2 eval` beside lm-eval's own `hf` model: the same answers, and how much faster.

    python benchmarks/evaluation.py train --home DIR --corpus CORPUS --data DATA
    python benchmarks/evaluation.py compare --home DIR --data DATA --limit 20 --out result.json

`train` makes a model of 25M parameters in a registry of its own. `compare` runs both on the same
tasks, in turn, each time as a new process that begins with nothing cached; lm-eval's in the
batch size that is best for it. A ratio is of two runs that follow each other. Model time of
lm-eval is what passes inside of the model, wall time that of the whole process; in
"evaluate_ratio" lm-eval's is without the start of Python, its index of tasks and the loading of
the model, while bc2's is whole. `peer` runs only lm-eval.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from lm_eval_peer.answers import Answers, answers_of
from lm_eval_peer.compare import compare as compare_answers
from lm_eval_peer.trained_model import NAME, train_model

from bc2.bench.results import Spread, new_id

app = typer.Typer(add_completion=False)

Home = Annotated[Path, typer.Option(help="Where the model is and results go.")]
Data = Annotated[Path, typer.Option(help="The original files of the benchmarks.")]
Benches = Annotated[
    str, typer.Option(help="mmlu, cmmlu, gsm8k, humaneval or tasks of lm-eval; :N for N shots.")
]
Limit = Annotated[int | None, typer.Option(help="Samples of each task; all if not given.")]
Ref = Annotated[str, typer.Option(help="Of a checkpoint in the home's registry.")]
Threads = Annotated[int, typer.Option(help="Of each process.")]

CORES = os.cpu_count() or 1

#: bc2's command, going on where no answer can be extracted: then a model has no score, but here its
#: answers and the time count.
_WITHOUT_SCORE = """
import sys
import bc2.evaluate.summary
from bc2.cli import main
bc2.evaluate.summary.check_extracted = lambda *_: None
main(sys.argv[1:])
"""
ALL = "mmlu:5,cmmlu:5,gsm8k:8,gsm8k:4,humaneval"


@dataclass(frozen=True)
class Work:
    """What both sides run."""

    bench: str
    shots: int | None
    data: Path
    limit: int | None
    threads: int

    @property
    def name(self) -> str:
        return self.bench if self.shots is None else f"{self.bench}, {self.shots} shots"


@dataclass
class Run:
    """One evaluation by one side."""

    wall_s: float
    """Of the whole process."""
    model_s: float
    answers: Answers
    more: dict[str, Any]
    """What else was measured."""

    def as_json(self) -> dict[str, Any]:
        return {"wall_s": self.wall_s, "model_s": self.model_s, **self.more}


@app.command()
def train(
    home: Home,
    corpus: Annotated[Path, typer.Option(help="Folder of JSONL files of text.")],
    data: Data,
    steps: Annotated[int, typer.Option(help="Of 2,048 tokens by default.")] = 300,
    questions: Annotated[float, typer.Option(help="Share of samples in GSM8K's form.")] = 0.5,
    sequence_length: int = 2048,
    vocab_size: int = 16_384,
    megabytes: Annotated[int, typer.Option(help="Of each source of text.")] = 10,
    seed: int = 0,
) -> None:
    """Train a model with its tokenizer; prints its ref."""
    print(
        train_model(
            home, corpus, data, steps=steps, questions=questions, sequence_length=sequence_length,
            vocab_size=vocab_size, megabytes=megabytes, seed=seed,
        )
    )  # fmt: skip


@app.command()
def compare(
    home: Home,
    data: Data,
    ref: Annotated[
        str, typer.Option(help="Of a checkpoint in the home's registry.")
    ] = "bench-eval",
    benches: Benches = ALL,
    limit: Limit = None,
    rounds: Annotated[int, typer.Option(help="Pairs of runs.")] = 3,
    batch_sizes: Annotated[str, typer.Option(help="Tried for lm-eval.")] = "1,2,4,8,16",
    tried: Annotated[int, typer.Option(help="Samples of each task on which they are.")] = 2,
    threads: Threads = CORES,
    out: Annotated[Path | None, typer.Option(help="JSON; printed if not given.")] = None,
) -> None:
    """Measure both in pairs, and compare every sample."""
    checkpoint = _checkpoint(home, ref)
    settings = {
        "checkpoint": checkpoint.name, "limit": limit, "rounds": rounds, "threads": threads,
    }  # fmt: skip
    result = {**_facts(home), "settings": settings}
    result["benches"] = found = []
    for work in _works(benches, data, limit, threads):
        sizes = _try_sizes(checkpoint, work, _numbers(batch_sizes), tried)
        best = min(sizes, key=lambda size: sizes[size]["model_s"])
        found.append(_pairs(home, ref, checkpoint, work, best, rounds) | {"tried": sizes})
        _write(result, out)


@app.command()
def peer(
    home: Home,
    data: Data,
    ref: Ref = NAME,
    benches: Benches = ALL,
    limit: Limit = None,
    batch_size: int = 4,
    threads: Threads = CORES,
    out: Annotated[Path | None, typer.Option(help="JSON; printed if not given.")] = None,
) -> None:
    """Run lm-eval's `hf` model alone; keeps its answers."""
    checkpoint = _checkpoint(home, ref)
    runs = {}
    for work in _works(benches, data, limit, threads):
        run = run_peer(checkpoint, work, batch_size)
        runs[work.name] = {**run.as_json(), "answers": run.answers}
    _write({**_facts(home), "runs": runs}, out)


def run_peer(checkpoint: Path, work: Work, batch_size: int) -> Run:
    """lm-eval in a process of its own. Raises: CalledProcessError."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "answers.json"
        command = [
            sys.executable, __file__, "peer-process", str(checkpoint), work.bench, str(work.data),
            str(path), "--batch-size", str(batch_size),
        ]  # fmt: skip
        command += ["--shots", str(work.shots)] if work.shots is not None else []
        command += ["--limit", str(work.limit)] if work.limit is not None else []
        began = time.perf_counter()
        subprocess.run(
            command, env=_environment(work) | {"HF_HUB_OFFLINE": "1"}, stdout=sys.stderr, check=True
        )
        wall_s = time.perf_counter() - began
        answer = json.loads(path.read_text(encoding="utf-8"))
    seconds = answer.pop("seconds")
    answers = answer.pop("answers")
    return Run(wall_s, seconds.pop("model_s"), answers, {**seconds, **answer})


def run_ours(home: Path, ref: str, work: Work) -> Run:
    """`bc2 eval` in a process of its own, which finds neither scores nor prompts of another run.

    Its samples are in the artifact's files. Raises: CalledProcessError.
    """
    with TemporaryDirectory(dir=home) as folder:
        registry = Path(folder) / "registry"
        shutil.copytree(home / "registry", registry)
        environment = _environment(work) | {
            "BC2_HOME": str(registry), "XDG_CACHE_HOME": str(Path(folder) / "cache"),
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [
            sys.executable, "-c", _WITHOUT_SCORE, "eval", ref, "--bench", work.bench,
            "--data", str(work.data), "--json",
        ]  # fmt: skip
        command += ["--shots", str(work.shots)] if work.shots is not None else []
        command += ["--limit", str(work.limit)] if work.limit is not None else []
        command += ["--allow-code"] if work.bench == "humaneval" else []
        began = time.perf_counter()
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        wall_s = time.perf_counter() - began
        (scores,) = json.loads(done.stdout)["scores"]
        answers = answers_of(_samples(Path(scores["path"]) / "samples"))
    return Run(wall_s, scores["model_seconds"], answers, {})


def _samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By task, the lines of lm-eval's file of samples."""
    return {
        path.stem.removeprefix("samples_").removeprefix("bc2_"): [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted(folder.glob("*.jsonl"))
    }


@app.command(hidden=True)
def peer_process(
    checkpoint: Path,
    bench: str,
    data: Path,
    out: Path,
    batch_size: int = 4,
    shots: int | None = None,
    limit: int | None = None,
) -> None:
    """The process of `run_peer`."""
    import torch
    from lm_eval_peer.hf_model import load_llama
    from lm_eval_peer.reference import HUMANEVAL, AskedTask, timed_reference
    from lm_eval_peer.rows import release_files

    from bc2.tokenizer.tokenizer import Tokenizer
    from bc2.train.allocator import keep_freed_memory
    from bc2.train.peak import host_peak

    keep_freed_memory()  # as bc2 does: the peer is not to lose time by the allocator
    model, tokenizer = load_llama(checkpoint), Tokenizer.load(checkpoint)
    seconds, answers = timed_reference(
        model, tokenizer, [AskedTask(HUMANEVAL if bench == "humaneval" else bench, shots)], limit,
        source=release_files(data), batch_size=batch_size,
    )  # fmt: skip
    answer = {
        "seconds": seconds, "answers": answers, "peak_bytes": host_peak(),
        "threads": torch.get_num_threads(), "batch_size": batch_size,
    }  # fmt: skip
    out.write_text(json.dumps(answer), encoding="utf-8")


def _try_sizes(
    checkpoint: Path, work: Work, sizes: list[int], limit: int
) -> dict[int, dict[str, Any]]:
    """Runs of lm-eval on few samples, by batch size; those that failed are left out."""
    few = Work(work.bench, work.shots, work.data, limit, work.threads)
    found = {}
    for size in sizes:
        try:
            found[size] = run_peer(checkpoint, few, size).as_json()
        except subprocess.CalledProcessError as error:
            _note(f"lm-eval in batches of {size} failed: {error}")
            continue
        _note(f"{work.name}: batches of {size}: {found[size]['model_s']:.1f} s in the model")
    if not found:
        raise SystemExit("lm-eval failed in every batch size")
    return found


def _pairs(
    home: Path, ref: str, checkpoint: Path, work: Work, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Runs in turn; ratios of each pair, and how far the last answers are the same."""
    peers, ours = [], []
    for number in range(rounds):
        peers.append(run_peer(checkpoint, work, batch_size))
        ours.append(run_ours(home, ref, work))
        _note(
            f"{work.name}, pair {number + 1}: lm-eval {peers[-1].model_s:.1f} of "
            f"{peers[-1].wall_s:.1f} s, bc2 {ours[-1].model_s:.1f} of {ours[-1].wall_s:.1f} s"
        )
    pairs = list(zip(peers, ours, strict=True))
    return {
        "bench": work.name,
        "batch_size": batch_size,
        "model_ratio": _spread([a.model_s / b.model_s for a, b in pairs]),
        "wall_ratio": _spread([a.wall_s / b.wall_s for a, b in pairs]),
        "evaluate_ratio": _spread(
            [(a.more["load_s"] + a.more["evaluate_s"]) / b.wall_s for a, b in pairs]
        ),
        "peer": [run.as_json() for run in peers],
        "ours": [run.as_json() for run in ours],
        "answers": compare_answers(ours[-1].answers, peers[-1].answers),
    }


def _works(benches: str, data: Path, limit: int | None, threads: int) -> list[Work]:
    parts = [each.partition(":") for each in benches.split(",")]
    return [
        Work(bench, int(shots) if shots else None, data.resolve(), limit, threads)
        for bench, _, shots in parts
    ]


def _checkpoint(home: Path, ref: str) -> Path:
    from bc2.registry import Registry

    return Registry.open(home / "registry").resolve(ref, kind="checkpoint").path


def _environment(work: Work) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(work.threads)}


def _facts(home: Path) -> dict[str, Any]:
    import torch

    from bc2.bench.machine import machine_facts

    name, began = new_id("evaluation", home)
    versions = {package: _version(package) for package in ("lm-eval", "datasets", "accelerate")}
    return {
        "id": name, "time": began, "machine": machine_facts(torch.device("cpu")),
        "versions": versions,
    }  # fmt: skip


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def _spread(values: list[float]) -> dict[str, Any]:
    return {**Spread.of(values).model_dump(), "rounds": values}


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _write(result: dict[str, Any], out: Path | None) -> None:
    """Print what was found, or keep it; again after each benchmark."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
