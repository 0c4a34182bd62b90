"""Whether a step of training waits for its data: many sources, warm and cold on disk.

Makes token shards of random numbers in a temporary directory, and reads them in the order
of a mixture, as training does, beside a step that takes a fixed time:

    python benchmarks/loader.py --folder DIRECTORY_ON_THE_DISK_IN_QUESTION

Cold: before the run the kernel is told to drop the shards from its page cache, and each
window is then read from the disk for the first time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bc2.data.loader import Loader
from bc2.data.mixture import Mixture
from bc2.data.shards import INDEX, TokenShards

app = typer.Typer(add_completion=False)

EOS = 2
VOCAB = 60_000


def make_shards(root: Path, sources: int, megabytes: int) -> TokenShards:
    """Random tokens, an end of document every 700 or so."""
    rng = np.random.default_rng(0)
    entries = {}
    for number in range(sources):
        file = f"train/source-{number:02d}/shard-00000.bin"
        (root / file).parent.mkdir(parents=True)
        ids = rng.integers(3, VOCAB, megabytes * 500_000).astype("<u2")
        ids[rng.integers(0, len(ids), len(ids) // 700)] = EOS
        with (root / file).open("wb") as stream:
            ids.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        entry = {"tokens": len(ids), "documents": len(ids) // 700, "bytes": len(ids) * 4}
        entries[f"source-{number:02d}"] = {**entry, "shards": [{"file": file, **entry}]}
    facts = {"dtype": "<u2", "vocab_size": VOCAB, "eos_id": EOS, "tokenizer": "none"}
    splits = {"train": entries, "heldout": {}}
    (root / INDEX).write_text(json.dumps({**facts, "splits": splits}))
    return TokenShards.open(root)


def drop_from_cache(root: Path) -> None:
    for path in root.glob("train/*/*.bin"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(root: Path) -> float:
    """The share of the shards' pages that are in memory, of what `fincore` says."""
    import subprocess

    files = [str(path) for path in root.glob("train/*/*.bin")]
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES,SIZE", *files]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    resident, size = np.array([line.split() for line in told.splitlines()], dtype=float).sum(0)
    return float(resident / size)


def waited(
    loader: Loader, rows: int, step_s: float, seconds: float, first: int
) -> dict[str, float]:
    """Steps of a fixed time, for some seconds; the first batch's wait is told apart."""
    waits = []
    with loader.iterate(first, rows) as batches:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - asked)
            time.sleep(step_s)
        took = time.perf_counter() - began
    return {
        "steps": len(waits),
        "first_ms": 1e3 * waits[0],
        "share": sum(waits[1:]) / took,
        "worst_ms": 1e3 * max(waits[1:]),
    }


def raw(loader: Loader, rows: int, seconds: float, first: int) -> float:
    """Samples a second with no step in between."""
    made = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        loader.batch(first + made, rows)
        made += rows
    return made / (time.perf_counter() - began)


@app.command()
def main(
    folder: Annotated[Path | None, typer.Option(help="Where to make the shards.")] = None,
    sources: int = 20,
    megabytes: Annotated[int, typer.Option(help="Size of each source.")] = 50,
    sequence_length: int = 2048,
    rows: Annotated[int, typer.Option(help="Samples of a step.")] = 16,
    step_ms: Annotated[float, typer.Option(help="How long a step takes.")] = 50,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 15,
) -> None:
    """Print a Markdown table: waiting for data, cold and warm."""
    root = Path(tempfile.mkdtemp(prefix="bc2-loader-", dir=folder))
    try:
        shards = make_shards(root, sources, megabytes)
        count = (megabytes * 500_000 - 1) // sequence_length
        mixture = Mixture(dict.fromkeys(shards.sources("train"), count), None, 0)
        loader = Loader(shards, "train", mixture, sequence_length, EOS)
        print("| cache | in it before | steps | waiting for data | first, ms | worst later, ms |")
        print("|---|---|---|---|---|---|")
        for name in ("cold", "warm"):
            if name == "cold":
                drop_from_cache(root)
            else:
                for path in root.glob("train/*/*.bin"):
                    path.read_bytes()
            share = cached_share(root)
            told = waited(loader, rows, step_ms / 1e3, seconds, 0)
            print(
                f"| {name} | {share:.1%} | {told['steps']} | {told['share']:.3%} | "
                f"{told['first_ms']:.1f} | {told['worst_ms']:.2f} |",
                flush=True,
            )
        warm = raw(loader, rows, seconds / 3, 0)
        drop_from_cache(root)
        cold = raw(loader, rows, seconds / 3, 0)
        print(f"\nThe loader alone: {cold:,.0f} samples/s cold, {warm:,.0f} warm.")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    app()
