"""What launchers say in the environment, and who listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warmed

from bc2 import cli, ranks
from bc2.errors import RecipeError, UsageError
from bc2.process import launcher_variables
from bc2.process.launcher_variables import (
    Place,
    read_place,
    rendezvous_address,
    set_aside,
)
from bc2.process.signals import LAUNCHED
from bc2.ranks import name_launcher

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
KUBEFLOW = {"WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (1, 0, 0, None, 0)),
        # An empty variable is one that is not set.
        ({"WORLD_SIZE": "", "RANK": "", "LOCAL_WORLD_SIZE": ""}, (1, 0, 0, None, 0)),
        # A batch script of Slurm is no step, and no rank.
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, (1, 0, 0, None, 0)),
        ({"LOCAL_RANK": "3"}, (1, 0, 0, None, 0)),
        ({"WORLD_SIZE": "1"}, (1, 0, 0, None, 0)),
        (KUBEFLOW, (2, 1, 0, None, 0)),
        (SLURM | {"SLURM_LOCALID": "1"}, (4, 1, 1, None, 0)),
        # A batch script that sets one of them itself.
        (SLURM | {"WORLD_SIZE": "8"}, (8, 1, 0, None, 0)),
        (SLURM | {"WORLD_SIZE": "", "RANK": "2"}, (4, 2, 0, None, 0)),
        # A launcher within a step of Slurm.
        (SLURM | KUBEFLOW | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (2, 1, 1, 2, 0)),
        (KUBEFLOW | {"TORCHELASTIC_RESTART_COUNT": "3"}, (2, 1, 0, None, 3)),
    ],
)
def test_which_rank_a_process_is(variables: dict[str, str], place: tuple[object, ...]) -> None:
    found = read_place(variables)
    assert (found.world, found.rank, found.local, found.local_world, found.restarts) == place


@pytest.mark.parametrize(
    ("variables", "what", "alone"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', not a whole number of 1 or more", ""),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is '0'", ""),
        ({"WORLD_SIZE": "1_0", "RANK": "0"}, "WORLD_SIZE is '1_0'", ""),
        ({"WORLD_SIZE": "9" * 5000, "RANK": "0"}, "not a whole number of 1 or more", ""),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, and RANK is not", "env -u WORLD_SIZE bc2"),
        ({"RANK": "1"}, "RANK=1 is set, and WORLD_SIZE is not", "env -u RANK bc2"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4 is set, and RANK is not", ""),
        (
            {"WORLD_SIZE": "2", "RANK": "5"},
            "RANK is '5', not a whole number from 0 to 1 (WORLD_SIZE=2)",
            "env -u WORLD_SIZE -u RANK bc2",
        ),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1'", ""),
        (SLURM | {"SLURM_PROCID": "4"}, "SLURM_PROCID is '4'", "srun --ntasks=1"),
        (KUBEFLOW | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'", ""),
        (
            KUBEFLOW | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
            "LOCAL_RANK is '1', not a whole number from 0 to 0 (LOCAL_WORLD_SIZE=1)",
            "",
        ),
        (KUBEFLOW | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE is '3'", ""),
        (KUBEFLOW | {"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT is 'x'", ""),
    ],
)
def test_variables_that_say_nothing(variables: dict[str, str], what: str, alone: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_place(variables)
    assert what in caught.value.what
    assert alone in (caught.value.todo or "")
    assert "to run it alone: env -u" in (caught.value.todo or "")


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "first", "MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({"MASTER_ADDR": "first", "MASTER_PORT": "65536"}, "not a whole number from 1 to 65535"),
    ],
)
def test_where_ranks_meet_must_be_said(variables: dict[str, str], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        rendezvous_address(KUBEFLOW | variables)
    assert what in str(caught.value)
    assert rendezvous_address({"MASTER_ADDR": "first", "MASTER_PORT": "29500"}) == ("first", 29500)


def test_an_error_names_what_made_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SLURM.items():
        monkeypatch.setenv(name, text)

    def todo(world: int) -> str | None:
        with pytest.raises(RecipeError) as caught, name_launcher(world):
            raise RecipeError("does not divide", todo="may be 1")
        return caught.value.todo

    said = todo(4)
    assert said is not None
    assert said.startswith("may be 1; this is one of 4 ranks because of SLURM_STEP_NUM_TASKS=4, ")
    assert "env -u SLURM_STEP_NUM_TASKS bc2" in said
    assert todo(2) == "may be 1"  # not this process's number
    monkeypatch.setenv(LAUNCHED, "--nproc 4")
    assert todo(4) == "may be 1"  # a person asked for it


#: What a launcher may have left, and what makes no sense at all.
LEFT = {
    "kubeflow": KUBEFLOW,
    "slurm": SLURM,
    "wrong": {"WORLD_SIZE": "abc", "RANK": "-1", "LOCAL_WORLD_SIZE": "", "LOCAL_RANK": "x"},
    "torch and mpi": {
        "RANK": "1", "LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "x",
    },
}  # fmt: skip

#: Commands that run no ranks.
COMMANDS = (
    "registry list --json", "registry show none", "recipe check small.toml",
    "data tokenize small.toml", "train-tokenizer small.toml --quiet",
    "plan small.toml --gpus 2 --device h100", "eval --list", "watch none",
    "fit-scaling-law --points none.csv", "generate none -p x", "report none",
    "ladder small.toml --dry-run",
)  # fmt: skip


def run(folder: Path, command: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return warmed.run(
        [sys.executable, "-P", "-m", "bc2", *command.split()],
        cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


#: Each command with one of them; and with all.
IN_TURN = [(command, [list(LEFT)[at % len(LEFT)]]) for at, command in enumerate(COMMANDS)]
ALL = [pytest.param(command, list(LEFT), marks=pytest.mark.slow) for command in COMMANDS]


@pytest.mark.parametrize(("command", "lefts"), [*IN_TURN, *ALL])
def test_commands_without_ranks_are_as_by_hand(small: Path, command: str, lefts: list[str]) -> None:
    by_hand = run(small, command, {})
    assert by_hand.stdout + by_hand.stderr
    for left in lefts:
        done = run(small, command, LEFT[left])
        assert (done.returncode, done.stdout, done.stderr) == (
            by_hand.returncode, by_hand.stdout, by_hand.stderr,
        )  # fmt: skip


@pytest.mark.parametrize(
    "left", ["torch and mpi", pytest.param("kubeflow", marks=pytest.mark.slow)]
)
def test_the_first_stages_are_made_as_by_hand(small: Path, left: str) -> None:
    """With the processes that make them."""
    done = run(small, "data prep small.toml --fresh --json", LEFT[left])
    assert done.returncode == 0, done.stderr
    assert '"kind": "corpus"' in done.stdout
    assert "corpus" in done.stderr


def test_no_library_and_no_process_sees_what_is_set_aside(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {name: text for variables in LEFT.values() for name, text in variables.items()}
    for name, text in left.items():
        monkeypatch.setenv(name, text)
    during: list[set[str]] = []
    monkeypatch.setattr(cli, "end_with_launcher", lambda: during.append(set(os.environ)))
    for _ in range(2):  # a program may call several commands, and each finds them
        with pytest.raises(SystemExit):
            cli.main(["recipe", "list"])
        assert capsys.readouterr().out
        assert left.items() <= os.environ.items()
    assert [set(left) & names for names in during] == [set(), set()]


def test_a_rank_takes_back_what_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SLURM | {"MASTER_ADDR": "first", "LOCAL_RANK": "", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with launcher_variables.set_aside():
        assert read_place(os.environ) == Place()
        launcher_variables.take_part()
        assert read_place(os.environ).world == 4
        assert os.environ["MASTER_ADDR"] == "first"
        assert "LOCAL_RANK" not in os.environ
        assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ  # DeepSpeed would compare it
    assert given.items() <= os.environ.items()


@pytest.mark.parametrize(
    "command",
    ["ladder small.toml", "eval --bench text", "verify resume small.toml", "pretrain small.toml"],
)
def test_commands_that_run_ranks_name_a_wrong_variable(small: Path, command: str) -> None:
    done = run(small, command, LEFT["wrong"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the environment variable WORLD_SIZE is 'abc'" in done.stderr
    assert "env -u WORLD_SIZE -u RANK bc2" in done.stderr


def test_a_step_of_slurm_says_how_to_train_alone(small: Path) -> None:
    done = run(small, "pretrain small.toml", SLURM)
    assert done.returncode == 2
    assert "this is rank 1 of 4 (SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=1)" in done.stderr
    assert "MASTER_ADDR and MASTER_PORT are not set" in done.stderr
    meets = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    done = run(small, "pretrain small.toml", SLURM | meets)
    assert done.returncode == 2
    assert "no whole number of micro-batches of 4 on 4 data-parallel ranks" in done.stderr
    assert "this is one of 4 ranks because of SLURM_STEP_NUM_TASKS=4, SLURM_PR" in done.stderr
    assert "env -u SLURM_STEP_NUM_TASKS bc2 ..., or in a step of its own: srun" in done.stderr


def test_local_rank_may_say_which_gpu_and_the_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed makes the GPU of LOCAL_RANK current: under srun each rank may see one, number 0."""
    for name, text in {**SLURM, "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("BC2_LOCAL_RANK", "")
    before = ranks.place()
    for index in (0, 5, 1):
        # The last is its number again; 5 is none of the ranks of its machine.
        ranks.export_gpu(index)
        assert os.environ["LOCAL_RANK"] == str(index)
        assert ranks.place() == before
        assert ranks.local_rank() == 1
    with set_aside():
        assert "BC2_LOCAL_RANK" not in os.environ
