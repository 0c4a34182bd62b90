"""Time and memory of `bc2 data prep` as the input grows.

    python benchmarks/funnel_scale.py --corpus ../shared/data/corpus --documents 10000,100000

Documents are drawn from real sentences: about 1.5 kB each, in English and Chinese. Memory is
the resident memory of all processes of the command together, sampled ten times a second.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from scipy.optimize import curve_fit

from bc2.data.prep.text.sentences import split_sentences

TABLES = {
    "near": "[corpus.near]\n",
    "across": "[corpus.passages]\n[corpus.near]\n[corpus.dense]\n[corpus.clusters]\n"
    "[corpus.weights]\n",
    "whole": "[corpus.normalise]\n[corpus.heuristics]\n[corpus.quality]\n"
    "[corpus.passages]\n[corpus.near]\n[corpus.dense]\n[corpus.safety]\n"
    '[corpus.decontaminate]\naction = "report"\n[[corpus.decontaminate.benchmarks]]\n'
    'name = "made-up"\npath = "{quiz}"\nfields = ["question"]\n'
    "[corpus.clusters]\n[corpus.weights]\n",
}

#: Made-up questions of a benchmark: sentences that stand in documents.
QUESTIONS = 1000

#: Documents in an input file.
FILE_DOCUMENTS = 20_000


def sentences_of(corpus: Path) -> list[list[str]]:
    """Sentences of English and of Chinese text, the first 30,000 of each file."""
    found = []
    for names in (["en_gutenberg", "en_docs"], ["zh_modern_translation", "zh_law"]):
        pool: list[str] = []
        for name in names:
            with gzip.open(corpus / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
                texts = (json.loads(line)["text"] for line in stream)
                pieces = (piece for text in texts for piece in split_sentences(text))
                long = (piece.strip() for piece in pieces if len(piece.strip()) > 20)
                pool += itertools.islice(long, 30_000)
        found.append(pool)
    return found


def crossed(rng: random.Random, pool: list[str]) -> str:
    """The first half of one sentence, the second of another: there are enough of these."""
    halves = []
    for text in rng.choices(pool, k=2):
        at = text.find(" ", len(text) // 2)
        at = at if at > 0 else len(text) // 2
        halves.append((text[:at], text[at:]))
    return halves[0][0] + halves[1][1]


def write_questions(pools: list[list[str]], path: Path) -> None:
    """A benchmark whose questions are sentences."""
    texts = [text for pool in pools for text in pool[: QUESTIONS // 2]]
    rows = (json.dumps({"question": text}, ensure_ascii=False) for text in texts)
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")


def write_documents(pools: list[list[str]], count: int, folder: Path, own: bool) -> int:
    """Made-up documents as JSONL; UTF-8 bytes of text.

    Args:
        own: one sentence in twelve stands in many documents, the others in this one alone.
    """
    folder.mkdir()
    rng = random.Random(0)
    size = 0
    for first in range(0, count, FILE_DOCUMENTS):
        with (folder / f"{first:09d}.jsonl").open("w", encoding="utf-8") as stream:
            for number in range(first, min(count, first + FILE_DOCUMENTS)):
                pool = pools[number % 2]
                pieces = rng.choices(pool, k=1 if own else 12)
                pieces += [crossed(rng, pool) for _ in range(11 if own else 0)]
                text = " ".join(pieces)
                size += len(text.encode())
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return size


def measured(command: list[str], home: Path) -> tuple[float, dict[str, int]]:
    """Wall seconds, and the highest resident bytes of the process and its children by phase.

    Pages that several of them share count once (PSS). A phase begins when its folder appears.
    """
    began = time.perf_counter()
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "BC2_HOME": str(home)}
    )
    process, phase = psutil.Process(run.pid), "start"
    peaks: dict[str, int] = {}
    while run.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            resident = sum(each.memory_full_info().pss for each in family)
        except psutil.NoSuchProcess:
            continue
        phase = next((name for name in phases(home) if name not in peaks), phase)
        peaks[phase] = max(peaks.get(phase, 0), resident)
        time.sleep(0.1)
    if run.returncode:
        raise SystemExit("the command failed")
    return time.perf_counter() - began, peaks


def phases(home: Path) -> list[str]:
    """What the work on a corpus has come to: reading, settling a stage, applying it, writing."""
    found = [path.name for path in home.glob("work/*/parts/read")]
    found += [path.parent.name for path in home.glob("work/*/parts/settled-*/scratch")]
    done = home.glob("work/*/parts/settled-*/facts.json")
    found += [path.parent.name.replace("settled", "applied") for path in done]
    return found + ["written" for _ in home.glob("staging/*/train")]


def worked(home: Path) -> list[str]:
    """Seconds of work by step, from the manifest of the corpus."""
    (manifest,) = home.glob("artifacts/corpus/*/*/manifest.json")
    return [
        f"{row['step']} {row['seconds']:.1f}"
        + (f" ({row['settling']:.1f})" if row["settling"] >= 0.1 else "")
        for row in json.loads(manifest.read_bytes())["facts"]["timings"]
    ]


def fitted(points: list[tuple[int, float, int]]) -> tuple[float, float]:
    """Seconds to begin with, and the exponent of what grows: seconds = a + b · documents^c."""
    documents, seconds, _ = (np.array(column, float) for column in zip(*points, strict=True))
    (start, _, exponent), _ = curve_fit(
        lambda n, a, b, c: a + b * n**c,
        documents / documents[0],
        seconds,
        p0=(seconds[0] / 2, seconds[0] / 2, 1.0),
        # Each point counts by its share.
        sigma=seconds,
        bounds=(0, (seconds[0], np.inf, 3.0)),
    )
    return float(start), float(exponent)


def picture(points: list[tuple[int, float, int]], exponent: float, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    documents, seconds, peaks = zip(*points, strict=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(documents, seconds, "o-", ms=4)
    slope = [seconds[-1] * n / documents[-1] for n in documents]
    left.loglog(documents, slope, ":", color="grey", label="linear through the last")
    left.set(xlabel="documents", ylabel="seconds", title=f"time, exponent {exponent:.2f}")
    left.legend()
    right.semilogx(documents, [peak / 1e6 for peak in peaks], "o-", ms=4)
    right.set(xlabel="documents", ylabel="MB", title="memory of all processes", ylim=(0, None))
    figure.savefig(out)


def main(
    corpus: Annotated[Path, typer.Option(help="Folder of *.jsonl.gz.")],
    documents: Annotated[str, typer.Option(help="Numbers of documents.")] = "10000,100000",
    what: Annotated[str, typer.Option(help="near, across or whole.")] = "near",
    workers: Annotated[int, typer.Option()] = 2,
    out: Annotated[Path | None, typer.Option(help="Picture, .svg or .png.")] = None,
) -> None:
    """One run of each size, and how time grows from the first to the last.

    With `--what whole` every stage of the funnel runs, with `--what across` those that look at
    the whole corpus: the others hold a part at a time.
    """
    pools = sentences_of(corpus)
    points: list[tuple[int, float, int]] = []
    for count in map(int, documents.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = write_documents(pools, count, folder / "in", own=what != "near")
            write_questions(pools, folder / "quiz.jsonl")
            recipe = folder / "scale.toml"
            recipe.write_text(
                'name = "scale"\n[corpus]\nheldout_fraction = 0.0\n[[corpus.sources]]\n'
                f'name = "s"\npath = "{folder / "in"}"\n'
                + TABLES[what].replace("{quiz}", str(folder / "quiz.jsonl"))
            )
            command = [sys.executable, "-m", "bc2", "data", "prep", str(recipe), "--quiet"]
            command += ["--workers", str(workers)]
            seconds, peaks = measured(command, folder / "home")
            steps = worked(folder / "home")
            shutil.rmtree(folder / "home")
        peak = max(peaks.values())
        line = f"{count:,} documents, {size / 1e6:,.0f} MB: {seconds:.1f} s, {peak / 1e6:,.0f} MB"
        print(line)
        print("  MB:", ", ".join(f"{name} {found / 1e6:,.0f}" for name, found in peaks.items()))
        print("  s of work (settling):", ", ".join(steps), flush=True)
        points.append((count, seconds, peak))
    if len(points) > 3:
        start, exponent = fitted(points)
        print(f"{start:.1f} s to begin with, exponent {exponent:.3f} of what grows")
        if out is not None:
            picture(points, exponent, out)


if __name__ == "__main__":
    typer.run(main)
