"""A corpus to token shards: one part, one shard, in as many processes as there are cores.

Each finished shard is durable in a work directory before the next begins, so a killed run
goes on from there; the shards move to their place together at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bc2.console import Progress
from bc2.data import versions
from bc2.data.corpus import (
    CorpusPart,
    carried_weights,
    clear_directory,
    corpus_facts,
    corpus_parts,
    read_part,
)
from bc2.data.documents import Document
from bc2.data.shards import INDEX, token_dtype
from bc2.data.splits import SPLITS
from bc2.data.workers import cores, worker_pool
from bc2.errors import DataError, RunFailed, from_os_error
from bc2.files import (
    make_directory,
    replace_durably,
    sha256_file,
    sync_directory,
    sync_open,
    write_durably,
)
from bc2.process.signals import shielded
from bc2.tokenizer.tokenizer import Tokenizer

#: UTF-8 bytes of text whose tokenizing takes several times what a process takes to start.
_WORTH_A_PROCESS = 32 * 2**20

#: UTF-8 bytes of text that are tokenized at once, if no document is larger: a sixth of a second.
_RUN_BYTES = 2**19

#: Seconds between two looks at how far the workers are.
_POLL_S = 0.25

#: Seconds over which the speed is measured.
_RECENT_S = 30.0

#: Told of UTF-8 bytes of text as they are done.
Told = Callable[[int], None]


@dataclass(frozen=True)
class Shard:
    """A finished shard: the sidecar beside it in the work directory."""

    tokenizer: str
    """Digest of the tokenizer."""
    part: str
    """SHA-256 of the corpus part."""
    sha256: str
    """SHA-256 of the shard."""
    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the text."""


def tokenize(
    corpus: Path,
    tokenizer_path: Path,
    out: Path,
    *,
    work: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make token shards of a corpus in `out`.

    Args:
        out: an empty or missing directory on the file system of `work`.
        work: keeps finished shards between runs; whoever calls removes it afterwards.
        workers: processes; `default_workers` if None. Each holds the tokenizer and a row group
            (4 MiB of text) as text and as ids.
        progress: told the bytes of text done, several times a second, with the speed of the
            last half minute and the time left; a finished shard of an earlier run counts at once.

    Returns:
        The contents of ``tokens.json``.

    Raises:
        DataError: no corpus or tokenizer, a tokenizer without EOS, or `out` is not empty.
        ResourceError: the disk is full, or a worker was killed for memory.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError("the output directory is not empty", where=str(out), todo="name another")
    tokenizer = Tokenizer.load(tokenizer_path)
    if tokenizer.eos_id < 0:
        raise DataError("the tokenizer has no EOS piece", where=str(tokenizer_path))
    parts = corpus_parts(corpus)
    made_out = not out.exists()
    try:
        make_directory(work)
        shards = _shards(corpus, parts, tokenizer_path, tokenizer, work, workers, progress)
        facts = _facts(corpus, tokenizer, dict(zip(parts, shards, strict=True)))
        for part in parts:
            _place(work / shard_name(part), out / shard_name(part))
        text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
        write_durably(out / INDEX, text.encode())
    except OSError as error:
        clear_directory(out, itself=made_out)
        raise from_os_error(error, "writing token shards") from error
    except BaseException:
        clear_directory(out, itself=made_out)
        raise
    return facts


def shard_name(part: CorpusPart) -> str:
    """``train/SOURCE/shard-00000.bin`` for ``train/SOURCE/part-00000.parquet``."""
    number = Path(part.file).stem.removeprefix("part-")
    return f"{part.split}/{part.source}/shard-{number}.bin"


def _place(made: Path, final: Path) -> None:
    """Put a finished shard at its place; it stays in the work directory for a next run."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(made, final)
    except OSError:  # another file system, or one without links
        shutil.copyfile(made, final)


def _facts(corpus: Path, tokenizer: Tokenizer, shards: dict[CorpusPart, Shard]) -> dict[str, Any]:
    splits: dict[str, Any] = {split: {} for split in SPLITS}
    for part, shard in shards.items():
        counts = {"tokens": shard.tokens, "documents": shard.documents, "bytes": shard.bytes}
        empty = {**dict.fromkeys(counts, 0), "shards": []}
        entry = splits[part.split].setdefault(part.source, empty)
        for unit, count in counts.items():
            entry[unit] += count
        entry["shards"].append({"file": shard_name(part), **counts})
    return {
        "version": versions.TOKENS,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer": tokenizer.digest,
        "tokens": {s: sum(e["tokens"] for e in splits[s].values()) for s in SPLITS},
        **carried_weights(corpus_facts(corpus), corpus),
        "splits": splits,
    }


# -- in one process, or several ------------------------------------------------------------


def _shards(
    corpus: Path,
    parts: list[CorpusPart],
    tokenizer_path: Path,
    tokenizer: Tokenizer,
    work: Path,
    workers: int | None,
    progress: Progress | None,
) -> list[Shard]:
    """One shard a part, in the order of `parts`."""
    count = min(workers or default_workers(parts), len(parts))
    meter = _Meter(progress, sum(part.bytes for part in parts))
    if count == 1:
        return [make_shard(corpus, part, tokenizer, work, told=meter.add) for part in parts]
    todo = "run the same again with fewer workers (tokens.workers); finished shards are kept"
    # A place a part, which one worker alone writes: no lock that a killed one could leave shut.
    shared = get_context("spawn").RawArray("q", len(parts))
    with worker_pool(count, "tokenizing", todo, _begin_worker, tokenizer_path, shared) as pool:
        done = _results(
            pool, corpus, parts, work, 2 * count, meter, np.frombuffer(shared, np.int64)
        )
    return [done[number] for number in range(len(parts))]


def default_workers(parts: list[CorpusPart]) -> int:
    """A process a core, but none for less than `_WORTH_A_PROCESS` bytes of text."""
    worth = 1 + sum(part.bytes for part in parts) // _WORTH_A_PROCESS
    return min(cores(), worth)


def _results(
    pool: ProcessPoolExecutor, corpus: Path, parts: list[CorpusPart], work: Path, ahead: int,
    meter: _Meter, counts: npt.NDArray[np.int64],
) -> dict[int, Shard]:  # fmt: skip
    """The shard of each part by its number; `ahead` parts are under way or waiting."""
    # The largest first, so that no core waits long for the last.
    order = iter(sorted(range(len(parts)), key=lambda number: -parts[number].bytes))
    done: dict[int, Shard] = {}
    waiting: dict[Future[Shard], int] = {}
    while len(done) < len(parts):
        for number in islice(order, ahead - len(waiting)):
            with shielded():  # the pool may start a process here
                waiting[pool.submit(_in_worker, corpus, parts[number], number, work)] = number
        for future in wait(waiting, _POLL_S, FIRST_COMPLETED).done:
            done[waiting.pop(future)] = future.result()
        meter.at(int(counts.sum()))
    return done


class _Meter:
    """Says how much of the text is done, how fast that goes and how long the rest will take."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress = progress
        self._total = total
        self._marks = deque([(time.monotonic(), 0)])

    def add(self, size: int) -> None:
        """So many bytes more are done."""
        self.at(self._marks[-1][1] + size)

    def at(self, done: int) -> None:
        """So many bytes are done in all."""
        now = time.monotonic()
        advance = done - self._marks[-1][1]
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] < now - _RECENT_S:
            self._marks.popleft()
        if self._progress is not None:
            self._progress(advance, self._pace())

    def _pace(self) -> str:
        """Megabytes a second of late, and the time left at that: hours, minutes, seconds."""
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        speed = (done - before) / max(now - began, 1e-9)
        if not speed:
            return ""
        left = timedelta(seconds=round((self._total - done) / speed))
        return f"{speed / 1e6:.1f} MB/s, {left} left"


class _Stopped(Exception):
    """The parent gave up."""


#: A worker's tokenizer, the bytes done of each part and the parent's wish to stop, set once by
#: `_begin_worker`.
_worker: dict[str, Any] = {}


def _begin_worker(tokenizer_path: Path, counts: Any, stop: Any) -> None:
    _worker.update(tokenizer=Tokenizer.load(tokenizer_path), stop=stop)
    _worker.update(counts=np.frombuffer(counts, np.int64))


def _in_worker(corpus: Path, part: CorpusPart, number: int, work: Path) -> Shard:
    def told(size: int) -> None:
        _worker["counts"][number] += size

    return make_shard(corpus, part, _worker["tokenizer"], work, _worker["stop"], told)


# -- one shard -----------------------------------------------------------------------------


def make_shard(
    corpus: Path, part: CorpusPart, tokenizer: Tokenizer, work: Path, stop: Any = None,
    told: Told = lambda size: None,
) -> Shard:  # fmt: skip
    """The shard of one part, taken from an earlier run if it is there and whole.

    Args:
        stop: an event; once it is set the part is given up.
        told: told of the part's bytes as they are done.
    """
    final = work / shard_name(part)
    sidecar = final.with_suffix(".json")
    digest = sha256_file(corpus / part.file)
    known = _finished(final, sidecar, digest, tokenizer.digest)
    if known is not None:
        told(part.bytes)
        return known
    make_directory(final.parent)
    aside = final.with_suffix(f".{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            tokens, documents, size = _encode(corpus / part.file, tokenizer, stream, stop, told)
            stream.flush()
            sync_open(stream.fileno(), aside)
        _check(part, documents, size)
        shard = Shard(tokenizer.digest, digest, sha256_file(aside), tokens, documents, size)
        os.replace(aside, final)
        sync_directory(final.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        # An OSError loses its file on the way between processes: say it here.
        raise from_os_error(error, f"writing {final.name}") from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    replace_durably(sidecar, json.dumps(asdict(shard)).encode())
    return shard


def _finished(final: Path, sidecar: Path, part: str, tokenizer: str) -> Shard | None:
    """The shard of an earlier run, if it was made of the same part and tokenizer and is whole."""
    try:
        shard = Shard(**json.loads(sidecar.read_bytes()))
        same = shard.part == part and shard.tokenizer == tokenizer
        return shard if same and sha256_file(final) == shard.sha256 else None
    except (FileNotFoundError, ValueError, TypeError):
        return None  # not finished: made again


def _encode(
    part: Path, tokenizer: Tokenizer, stream: BinaryIO, stop: Any, told: Told
) -> tuple[int, int, int]:
    """Write the ids of a part; returns tokens, documents and UTF-8 bytes of text."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens = documents = size = 0
    for group in read_part(part):
        for texts, run_bytes in _runs(group):
            if stop is not None and stop.is_set():
                raise _Stopped
            ids, lengths = tokenizer.encode_flat(texts)
            _check_ids(ids, lengths, tokenizer, part)
            stream.write(ids.astype(dtype, copy=False).tobytes())
            tokens += len(ids)
            documents += len(texts)
            size += run_bytes
            told(run_bytes)
    return tokens, documents, size


def _runs(group: list[Document]) -> Iterator[tuple[list[str], int]]:
    """The texts of documents, `_RUN_BYTES` or one text more at a time, and their UTF-8 bytes."""
    texts: list[str] = []
    size = 0
    for document in group:
        texts.append(document.text)
        size += len(document.text.encode())
        if size >= _RUN_BYTES:
            yield texts, size
            texts, size = [], 0
    if texts:
        yield texts, size


def _check_ids(ids: Any, lengths: Any, tokenizer: Tokenizer, part: Path) -> None:
    """EOS ends each document and stands nowhere else; every id is in the vocabulary."""
    ends = np.cumsum(lengths) - 1
    in_range = ids.max(initial=0) < tokenizer.vocab_size
    if not in_range or not np.array_equal(np.flatnonzero(ids == tokenizer.eos_id), ends):
        raise RunFailed(
            "the tokenizer gave ids outside its vocabulary, or EOS inside a document",
            where=str(part),
            todo="this is a defect of bc2 or of a foreign tokenizer: please report it",
        )


def _check(part: CorpusPart, documents: int, size: int) -> None:
    if (documents, size) != (part.documents, part.bytes):
        raise DataError(
            f"the part holds {documents:,} documents of {size:,} bytes, not "
            f"{part.documents:,} of {part.bytes:,} as corpus.json says",
            where=part.file,
            todo="make the corpus again with `bc2 data prep`",
        )
