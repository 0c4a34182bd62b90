"""Work under a small limit of open files (``ulimit -n``), and what is said where none is left."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase

import pytest
import warmed

from bc2 import cli
from bc2.errors import DataError, TooManyOpenFiles, from_os_error
from bc2.process import open_files
from bc2.registry import Registry
from bc2.train.logs.log_rows import METRICS, read_rows

#: Sources, and how many files a process that reads all of them may have open.
SOURCES, LIMIT = 120, 64

#: A limit that a process cannot raise again.
LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0})); "
    "from bc2.cli import main; main(sys.argv[1:])"
)


@contextmanager
def limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def none_free() -> Iterator[None]:
    """No file can be opened in the block."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with limit(free):
        yield


def test_the_soft_limit_is_raised_and_never_lowered() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with limit(256):
        open_files.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
        open_files.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)


@pytest.mark.parametrize(("soft", "kept"), [(32, 4), (64, 4), (256, 96), (512, 224), (1024, 256)])
def test_what_is_kept_open_leaves_files_for_the_rest(soft: int, kept: int) -> None:
    with limit(soft):
        assert open_files.share(256) == kept
        assert open_files.share(2) == 2


def test_an_error_says_the_limit_and_how_to_raise_it() -> None:
    with limit(300):
        told = from_os_error(OSError(errno.EMFILE, "Too many open files", "a.bin"), "saving")
    assert isinstance(told, TooManyOpenFiles)
    assert told.where == "a.bin"
    assert told.what == (
        "too many open files while saving: this process may have 300 open (`ulimit -n`)"
    )
    assert "4096" in str(told.todo)
    told = from_os_error(OSError(errno.ENFILE, "Too many open files in system"), "saving")
    assert "fs.file-max" in str(told)


def test_a_reader_that_calls_a_file_damaged_for_want_of_descriptors_is_corrected() -> None:
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise DataError(f"this is no corpus: {error}", where="here", todo="make it") from error
    except DataError as error:
        told = cli.explain(error)
    assert isinstance(told, TooManyOpenFiles)
    assert told.where == "here"
    told = cli.explain(RuntimeError("cannot open model: Too many open files (os error 24)"))
    assert isinstance(told, TooManyOpenFiles)
    other = DataError("this is no corpus: not found")
    assert cli.explain(other) is other


def test_sqlite_that_cannot_open_its_index_for_want_of_descriptors(small: Path) -> None:
    registry = Registry.open()
    with none_free(), pytest.raises(TooManyOpenFiles, match="opening the"):
        registry.list("corpus")


@pytest.fixture
def many(prepared_home: Path, tmp_path: Path) -> Path:
    """A folder with many.toml: small.toml with many small sources."""
    recipe = (prepared_home / "small.toml").read_text()
    head, _, rest = recipe.partition("[[corpus.sources]]")
    settings = rest[rest.index("[tokenizer]") :].replace('"24 steps"', '"12 steps"')
    sources = ""
    for number in range(SOURCES):
        name = f"s{number:03d}"
        letters = random.Random(number)
        words = ["".join(letters.choices(ascii_lowercase, k=5)) for _ in range(60)]
        rows = [{"text": " ".join(letters.sample(words, 60))} for _ in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources += f'[[corpus.sources]]\nname = "{name}"\npath = "{name}.jsonl"\n\n'
    (tmp_path / "many.toml").write_text(head + sources + settings)
    return tmp_path


def launch(folder: Path, home: str, *words: str, files: int | None) -> subprocess.Popen[str]:
    start = ["-m", "bc2"] if files is None else ["-c", LIMITED.format(files)]
    environment = {**os.environ, "BC2_HOME": str(folder / home), "OMP_NUM_THREADS": "1"}
    return warmed.Popen(
        [sys.executable, "-P", *start, *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def stop_at(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGTERM after a step."""
    while process.poll() is None:
        found = next(metrics.glob(f"*/{METRICS}"), None)
        rows = list(read_rows(found)) if found else []
        if rows and rows[-1]["step"] >= step:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM


def test_a_run_of_many_sources_is_the_same_under_a_small_limit(many: Path) -> None:
    """300 sources under ``ulimit -n 256`` ended at step 36, and with 32 at the first evaluation."""
    command = ("pretrain", "many.toml", "--quiet")
    expected = output(launch(many, "free", *command, files=None))
    limited = launch(many, "limited", *command, files=LIMIT)
    stop_at(limited, many / "limited" / "runs", 5)
    assert output(launch(many, "limited", *command, files=LIMIT)) == expected
    registry = Registry.open(many / "limited")
    (shards,) = registry.list("tokens")
    assert len(list(shards.path.glob("train/*/shard-00000.bin"))) == SOURCES
    words = ("generate", "small", "abc de", "--max-new-tokens", "4", "--quiet")
    assert output(launch(many, "limited", *words, files=32))
