"""Near-deduplication beside datatrove: raw JSONL to surviving documents, one run each, in turn.

    python benchmarks/near_dedup.py compare --corpus ../shared/data/corpus --megabytes 150 \
        --datatrove VENV/bin/python

The other environment needs datatrove and orjson. Both get the same plain JSONL files, two
worker processes, and as many hashes, bands and words a shingle; both start with an empty
process, which is timed too. datatrove gets a tokenizer by one regular expression, of the same
words as ours: faster than spaCy, its default. Ours verifies pairs, datatrove does not.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from bc2.data.documents import text_id
from bc2.data.prep.config import NearSettings
from bc2.data.prep.near import NearStage
from bc2.data.prep.stage import RECORD, ROW_BITS, Work

if TYPE_CHECKING:
    import daft

app = typer.Typer(add_completion=False)

#: Bytes of text in a part, as in the funnel.
PART_BYTES = 32 << 20

DATATROVE = """
import re, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer

class Words(WordTokenizer):
    pattern = re.compile("[\\u3000-\\u9fff]|[^\\\\W\\u3000-\\u9fff]+")
    def word_tokenize(self, text):
        return self.pattern.findall(text)
    def sent_tokenize(self, text):
        raise NotImplementedError
    def span_tokenize(self, text):
        raise NotImplementedError

def main():
    source, out, files, workers, bands, rows, shingle = sys.argv[1:3] + list(map(int, sys.argv[3:]))
    config = minhash.MinhashConfig(n_grams=shingle, num_buckets=bands, hashes_per_bucket=rows)
    reader = JsonlReader(source)
    stages = [
        ([reader, minhash.MinhashDedupSignature(f"{out}/sig", config, language=Words())], files),
        ([minhash.MinhashDedupBuckets(f"{out}/sig", f"{out}/buckets", config=config)], bands),
        ([minhash.MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1),
        ([reader, minhash.MinhashDedupFilter(f"{out}/remove"),
          JsonlWriter(f"{out}/kept", compression=None)], files),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{number}"
        ).run()

if __name__ == "__main__":
    main()
"""


class PoolWork(Work):
    """A working set in a folder, worked on by a pool of processes."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor):
        self.root = folder
        self.folder = folder / "scratch"
        self.folder.mkdir()
        self.parts = sorted(path.name for path in (folder / "parts").iterdir())
        self._pool = pool

    def part(self, name: str) -> Path:
        return self.root / "parts" / name

    def keys(self, name: str) -> Path:
        return self.root / "keys" / name

    def verdict(self, name: str) -> Path:
        return self.root / "verdicts" / name

    def frame(self, paths: Iterable[Path]) -> daft.DataFrame:
        import daft

        return daft.read_parquet([str(path) for path in paths])

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return self._pool.map(function, items)


def read(stage: NearStage, root: Path, job: tuple[int, Path]) -> None:
    """A JSONL file to parts and their keys."""
    number, path = job
    texts: list[str] = []
    first = size = 0
    with path.open("rb") as stream:
        for line in stream:
            texts.append(json.loads(line)["text"])
            size += len(line)
            if size >= PART_BYTES:
                write(stage, root, number, path.name, first, texts)
                first, size, texts = first + len(texts), 0, []
    write(stage, root, number, path.name, first, texts)


def write(
    stage: NearStage, root: Path, number: int, file: str, first: int, texts: list[str]
) -> None:
    count = len(texts)
    columns = [
        [(number << ROW_BITS) | row for row in range(first, first + count)],
        [text_id(text) for text in texts],
        texts,
        ["s"] * count,
        [None] * count,
        [file] * count,
        range(first + 1, first + count + 1),
    ]
    table = pa.table(columns, schema=RECORD)
    name = f"{number:05d}-{first:09d}.parquet"
    pq.write_table(table, root / "parts" / name)
    pq.write_table(stage.keys(table), root / "keys" / name)


def apply(stage: NearStage, root: Path, name: str) -> int:
    """Write the survivors of a part."""
    verdict = pq.read_table(root / "verdicts" / name)
    outcome = stage.apply(pq.read_table(root / "parts" / name), verdict)
    pq.write_table(outcome.table, root / "kept" / name)
    return len(outcome.table)


@app.command()
def ours(source: Path, out: Path, workers: int) -> None:
    """The whole way through the stage; prints facts and seconds by step."""
    stage = NearStage(NearSettings())
    for name in ("parts", "keys", "verdicts", "kept"):
        (out / name).mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    times = [time.perf_counter()]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(partial(read, stage, out), enumerate(sorted(source.iterdir()))))
        times.append(time.perf_counter())
        work = PoolWork(out, pool)
        facts = stage.settle(work)
        times.append(time.perf_counter())
        kept = sum(pool.map(partial(apply, stage, out), work.parts))
        times.append(time.perf_counter())
    steps = [round(after - before, 2) for before, after in pairwise(times)]
    print(json.dumps({"kept": kept, "keys, settle, apply": steps, **facts}))


def make_input(corpus: Path, megabytes: int, files: int, folder: Path) -> tuple[int, int]:
    """Documents of every file of the corpus in turn, as plain JSONL; (documents, bytes)."""
    folder.mkdir()
    documents = size = 0
    with ExitStack() as stack:
        paths = sorted(corpus.glob("*.jsonl.gz"))
        streams = [stack.enter_context(gzip.open(path, "rb")) for path in paths]
        names = [folder / f"{number:02d}.jsonl" for number in range(files)]
        outs = [stack.enter_context(path.open("wb")) for path in names]
        while streams and size < megabytes * 1_000_000:
            stream = streams[documents % len(streams)]
            line = stream.readline()
            if not line:
                streams.remove(stream)
                continue
            text = json.loads(line)["text"]
            row = {"id": str(documents), "text": text}
            outs[documents % files].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            documents, size = documents + 1, size + len(text.encode())
    return documents, size


def timed(command: list[str], log: Path) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    began = time.perf_counter()
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    return seconds, done.stdout


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


@app.command()
def compare(
    corpus: Annotated[Path, typer.Option(help="Folder of *.jsonl.gz.")],
    datatrove: Annotated[Path, typer.Option(help="Python of an environment that has it.")],
    megabytes: Annotated[int, typer.Option(help="Text to take.")] = 150,
    files: Annotated[int, typer.Option(help="Input files, the unit of datatrove's work.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes of each.")] = 2,
    runs: Annotated[int, typer.Option(help="Runs of each, alternating.")] = 3,
    peer_bands: Annotated[bool, typer.Option(help="Also run datatrove's own 14 by 8.")] = False,
) -> None:
    """Both on the same input, in turn."""
    settings, stage = NearSettings(), NearStage(NearSettings())
    version = "import importlib.metadata as m; print(m.version('datatrove'))"
    peer = subprocess.run([datatrove, "-c", version], capture_output=True, text=True, check=True)
    bands, rows = (14, 8) if peer_bands else (stage.bands, stage.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in"
        documents, size = make_input(corpus, megabytes, files, source)
        (folder / "peer.py").write_text(DATATROVE)
        mine, daft = (importlib.metadata.version(name) for name in ("bc2", "daft"))
        print(
            f"{documents:,} documents, {size / 1e6:.0f} MB of text, {files} files; "
            f"{workers} workers, {os.cpu_count()} cores; shingles of {settings.shingle} words\n"
            f"bc2 {mine}, daft {daft}: {stage.bands} bands of {stage.rows}, threshold "
            f"{settings.threshold}\ndatatrove {peer.stdout.strip()}: {bands} bands of {rows}",
            flush=True,
        )
        seconds: dict[str, list[float]] = {"bc2": [], "datatrove": []}
        for number in range(runs):
            out, theirs = folder / "mine", folder / "theirs"
            me = [sys.executable, __file__, "ours", str(source), str(out), str(workers)]
            you = [str(datatrove), str(folder / "peer.py"), str(source), str(theirs)]
            you += [str(value) for value in (files, workers, bands, rows, settings.shingle)]
            took, said = timed(me, folder / "mine.log")
            seconds["bc2"].append(took)
            took, _ = timed(you, folder / "theirs.log")
            seconds["datatrove"].append(took)
            print(
                f"run {number}: bc2 {seconds['bc2'][-1]:.2f} s, datatrove {took:.2f} s, kept "
                f"{lines(theirs / 'kept'):,} by datatrove; {said.strip()}",
                flush=True,
            )
            shutil.rmtree(out)
            shutil.rmtree(theirs)
    ratios = [b / a for a, b in zip(seconds["bc2"], seconds["datatrove"], strict=True)]
    print(
        f"ratio {statistics.median(ratios):.1f} (median of {runs}; {min(ratios):.1f} to "
        f"{max(ratios):.1f})"
    )


if __name__ == "__main__":
    app()
