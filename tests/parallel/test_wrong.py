"""Wrong inputs of runs on several ranks: each one error that says what to do, in seconds."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from bc2.cli import main
from bc2.launch.rendezvous_port import is_foreign

Pair = Callable[..., list[tuple[int, str]]]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the error of a command that starts no rank."""
    began = time.monotonic()
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "small.toml", *arguments])
    assert time.monotonic() - began < 30
    err = capsys.readouterr().err
    assert err.count("error:") == 1, err
    assert "Traceback" not in err
    assert isinstance(left.value.code, int)
    return left.value.code, err


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.mark.parametrize(
    ("arguments", "what", "todo"),
    [
        (
            ["--nproc", "3", *sets("parallel.tensor=3")],
            "parallel.tensor = 3 does not divide model.num_heads = 2",
            "parallel.tensor may be 1, 2",
        ),
        (
            ["--nproc", "3", *sets("parallel.tensor=2")],
            "3 ranks cannot be parted into tensor x sequence = 2 x 1",
            "start a multiple of 2 ranks",
        ),
        (
            ["--nproc", "4", *sets("parallel.tensor=2", "parallel.sequence=2")],
            "parallel.sequence = 2 does not divide heads of a tensor rank = 1",
            "parallel.sequence may be 1",
        ),
        (
            ["--nproc", "3"],
            "a step of 8 sequences is no whole number of micro-batches of 4 on 3 data-parallel",
            "the data-parallel ranks may be 1, 2, 4, 8",
        ),
        (
            ["--nproc", "4"],
            "a step of 8 sequences is no whole number of micro-batches of 4 on 4 data-parallel",
            "micro_batch may be 1, 2",
        ),
        (
            ["--nproc", "2", *sets("pretrain.micro_batch=auto")],
            'micro_batch = "auto" is tried on one rank alone',
            "set a number of sequences",
        ),
        (
            ["--nproc", "2", *sets("parallel.zero_group=2")],
            "zero_group needs zero = 3",
            "",
        ),
        (sets("parallel.tensor=2"), "1 ranks cannot be parted", "start a multiple of 2 ranks"),
        (["--nnodes", "2", "--nproc", "2"], "--nnodes 2 needs --rendezvous", "HOST:PORT"),
        (["--nnodes", "two", "--nproc", "2"], "--nnodes two is no number of machines", "e.g. 2"),
        (["--nnodes", "2", "--rendezvous", "here"], "here is no HOST:PORT", "first-machine:29500"),
        (
            ["--nnodes", "2", "--rendezvous", "here:29500", "--node-rank", "2"],
            "--node-rank 2 is none of --nnodes 2",
            "number the machines from 0 to 1",
        ),
    ],
)
def test_what_does_not_fit(
    small: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str, todo: str
) -> None:
    code, err = refused(capsys, *arguments)
    assert code == 2
    assert what in err
    assert todo in err
    assert not (small / "home" / "runs").exists()


def test_ranks_start_no_ranks(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, err = refused(capsys, "--nproc", "2")
    assert code == 2
    assert "this is one of 2 ranks already" in err
    assert "leave out --nproc and --nnodes" in err


@pytest.mark.parametrize("machines", [["--nnodes", "2", "--node-rank", "0"], []])
def test_a_port_in_use(
    small: Path, capsys: pytest.CaptureFixture[str], machines: list[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"localhost:{taken.getsockname()[1]}"
        smaller = sets("pretrain.micro_batch=2")
        code, err = refused(capsys, "--nproc", "2", "--rendezvous", place, *machines, *smaller)
    assert code == 1
    assert "is in use on this machine" in err
    assert f"--rendezvous {place}" in err
    assert "give all machines another port" in err


@pytest.mark.parametrize(("place", "answers"), [([], False), (["--node-rank", "1"], True)])
def test_a_port_of_somebody_else(
    small: Path, capsys: pytest.CaptureFixture[str], place: list[str], answers: bool
) -> None:
    """Machines that do not know which is first find something there that is no launcher."""
    with socket.create_server(("localhost", 0)) as taken:
        if answers:
            threading.Thread(target=hang_up, args=(taken,), daemon=True).start()
        there = f"localhost:{taken.getsockname()[1]}"
        code, err = refused(capsys, "--nnodes", "2", "--rendezvous", there, *place)
    assert code == 1
    assert "of localhost is no launcher of bc2" in err
    assert f"--rendezvous {there}" in err


def hang_up(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            server.accept()[0].close()


def test_a_port_of_another_launcher_is_where_to_meet(port: int) -> None:
    assert not is_foreign("localhost", port)
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    assert not is_foreign("localhost", port)
    del store


def test_a_machine_that_is_not_there(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "--nnodes", "2", "--rendezvous", "nowhere.invalid:29500")
    assert code == 1
    assert "there is no machine 'nowhere.invalid'" in err


@pytest.mark.parametrize(
    ("other", "what"),
    [
        # One that changes results, one that does not, and one that says who talks with whom.
        ("pretrain.seed=1", "another recipe than rank 0: pretrain.seed = 1 and 0"),
        (
            "pretrain.eval_every=5 steps",
            "another recipe than rank 0: pretrain.eval_every = '5 steps' and '8 steps'",
        ),
        ("parallel.tensor=2", "another [parallel] than rank 0: tensor = 2 and 1"),
    ],
)
def test_ranks_with_different_recipes(small: Path, pair: Pair, other: str, what: str) -> None:
    first, second = pair([], sets(other))
    for code, err in (first, second):
        assert code == 2, err
        assert what in err
        assert "start all ranks with the same command" in err
    assert first[1].count("error:") == 1
    assert "rank 1: error:" in second[1]
    assert not (small / "home" / "runs").exists()


def test_ranks_with_different_code(small: Path, pair: Pair) -> None:
    """One of them has another file of bc2."""
    import bc2

    own = small / "own"
    own.mkdir()
    source = Path(bc2.__file__).parent
    shutil.copytree(source, own / "bc2", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("commands", "recipes"):
        shutil.copytree(source.parent / name, own / "bc2" / name)
    with (own / "bc2" / "files.py").open("a") as changed:
        changed.write("\n# changed\n")
    first, second = pair([], [], environment={"PYTHONPATH": str(own)})
    for code, err in (first, second):
        assert code == 2, err
        assert "rank 1 has another code than rank 0: source = " in err
        assert "version of bc2" in err


def test_a_home_that_is_not_shared(small: Path, pair: Pair) -> None:
    shutil.copytree(small / "home", small / "other")
    first, second = pair([], [], environment={"BC2_HOME": str(small / "other")})
    for code, err in (first, second):
        assert code == 1, err
        assert "does not see what rank 0 writes" in err
        assert "put BC2_HOME on a file system that all machines share" in err
    assert first[1].count("error:") == 1


def test_a_home_that_is_not_shared_is_found_before_anything_is_made(
    small: Path, pair: Pair
) -> None:
    first, second = pair([], [], environment={"BC2_HOME": str(small / "empty")})
    for code, err in (first, second):
        assert code == 1, err
        assert "does not see what rank 0 writes" in err
        assert "making" not in err
    assert not [path for path in (small / "empty").rglob("*") if path.is_file()]


def test_a_home_that_is_not_shared_where_the_run_is_finished(
    small: Path, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rank that sees it finished leaves no other one waiting for it."""
    shutil.copytree(small / "home", small / "other")
    short = sets("pretrain.length=2 steps", "pretrain.schedule.warmup=1 steps")
    short += sets("pretrain.eval_tokens=0")
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "small.toml", *short])
    assert left.value.code == 0, capsys.readouterr().err
    first, second = pair(short, short, environment={"BC2_HOME": str(small / "other")})
    for code, err in (first, second):
        assert code == 1, err
        assert "does not see what rank 0 writes" in err
    assert first[1].count("error:") == 1
    shared = pair(short, short)
    assert [code for code, _ in shared] == [0, 0], shared
    assert "is registered already" in shared[0][1]
