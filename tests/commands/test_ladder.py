"""`bc2 ladder`: every member an ordinary run, what is there is found, what fails is marked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import warmed

from bc2.cli import main
from bc2.registry import Artifact, Registry
from bc2.train.logs.runs import list_runs


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        return {one["label"]: one for one in json.loads(self.out)["members"]}


Ladder = Callable[..., Done]

SMALL, MIDDLE, LARGE = "2.61k", "20.6k-30steps", "20.6k-18Ktokens"


@pytest.fixture
def command(
    ladder_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ladder:
    """Runs a command in this process, in the directory of micro.toml, and draws no curves."""
    monkeypatch.setattr("bc2.report.curves.draw_run", lambda run: None)

    def run(*args: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main([*args])
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def finished() -> list[Artifact]:
    return Registry.open().list("checkpoint", finished=True)


def test_members_are_runs_of_pretrain(command: Ladder, ladder_home: Path) -> None:
    done = command("ladder", "micro.toml", "--json", "--seeds", "2")
    assert done.code == 0, done.err
    members = done.members
    assert list(members) == [SMALL, f"{SMALL}-seed1", MIDDLE, LARGE]
    assert [one["seed"] for one in members.values()] == [0, 1, 0, 0]
    for one in members.values():
        assert (one["status"], one["made"]) == ("finished", True)
        assert one["seconds"] > 0
        assert one["epochs"] == one["tokens"] / json.loads(done.out)["epoch_tokens"]
        made = Registry.open().resolve(f"{one['name']}:micro", "checkpoint")
        assert (made.digest, made.finished) == (one["digest"], True)
        assert made.position is not None
        assert made.position.tokens == one["tokens"]
        facts = made.manifest.facts
        assert one["heldout_loss"] == facts["heldout_loss"]
        assert one["heldout_sha256"] == facts["heldout_sha256"]
    assert len({one["heldout_sha256"] for one in members.values()}) == 1
    assert members[SMALL]["heldout_loss"] != members[f"{SMALL}-seed1"]["heldout_loss"]

    # the table beforehand, a line an event
    assert "The ladder micro" in done.err
    assert "[1/4] micro-2.61k: 2,048 tokens, about" in done.err
    assert "[4/4] micro-20.6k-18Ktokens: finished, held-out" in done.err
    assert "micro-2.61k is no member" not in done.err

    # pretrain finds what the ladder made, by the same settings
    sets = [word for each in members[MIDDLE]["overrides"] for word in ("--set", each)]
    same = command("pretrain", "micro.toml", *sets, "--json")
    assert same.code == 0, same.err
    found = json.loads(same.out)
    assert (found["digest"], found["made"]) == (members[MIDDLE]["digest"], False)

    # what was a member and is none any more loses the tag, so that no law takes it
    changed = ["--set", "ladder.members.0.length=31 steps", "--only", SMALL]
    done = command("ladder", "micro.toml", "--quiet", *changed)
    assert done.out.split() == [members[SMALL]["ref"]]
    assert f"({members[MIDDLE]['ref']}) is no member any more" in done.err
    assert done.err.count("is no member any more") == 1
    assert Registry.open().resolve(members[MIDDLE]["ref"]).tags == ()

    # and alone, in another home, it makes the same bits
    home = ladder_home / "alone"
    shutil.copytree(ladder_home / "home" / "artifacts" / "tokens", home / "artifacts" / "tokens")
    for kind in ("tokenizer", "corpus"):
        shutil.copytree(ladder_home / "home" / "artifacts" / kind, home / "artifacts" / kind)
    os.environ["BC2_HOME"] = str(home)  # `small` restores it
    alone = command("pretrain", "micro.toml", *sets, "--json")
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["digest"] == members[MIDDLE]["digest"]
    assert json.loads(alone.out)["made"]


def test_a_killed_ladder_goes_on(command: Ladder, ladder_home: Path) -> None:
    """The second of three is killed on the way: the first is found, the second goes on."""
    longer = [
        "--set", "ladder.members.0.length=32 steps", "--set", "pretrain.checkpoint_every=4 steps"
    ]  # fmt: skip
    args = ["ladder", "micro.toml", *longer]
    process = warmed.Popen(
        [sys.executable, "-P", "-m", "bc2", *args], cwd=ladder_home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def saved() -> list[Artifact]:
        home = Registry.open()
        return [one for one in home.list("checkpoint", finished=False) if "20.6k" in one.name]

    try:
        until = time.monotonic() + 120
        while not saved() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    done = command(*args, "--json")
    assert done.code == 0, done.err
    members = list(done.members.values())
    assert [one["made"] for one in members] == [False, True, True]
    assert all(one["status"] == "finished" for one in members)
    killed = members[1]["name"]
    assert f"[1/3] {members[0]['name']}: found" in done.err
    (run,) = [run for run in list_runs(Registry.open()) if run.name == killed]
    assert [attempt.event for attempt in run.attempts()] == ["start", "resume"]

    quiet = command(*args, "--quiet")
    assert quiet.out.split() == [one["ref"] for one in members]


def test_what_fails_is_marked_and_the_others_go_on(command: Ladder) -> None:
    done = command("ladder", "micro.toml", "--quiet", "--only", MIDDLE)
    assert done.code == 0, done.err
    (earlier,) = finished()
    assert Registry.open().get(earlier.digest).tags == ("micro",)
    wrong = [
        "--set", "ladder.members.0.learning_rate=1e9", "--set", "pretrain.guard.action=stop",
        "--set", "pretrain.guard.window=4",
    ]  # fmt: skip
    done = command("ladder", "micro.toml", "--json", *wrong)
    assert done.code == 1
    members = done.members
    assert [one["status"] for one in members.values()] == ["finished", "failed", "finished"]
    failed = members[MIDDLE]
    assert failed["ref"] is None
    assert failed["reason"].startswith("loss is nan")
    assert "1 of 3 members of the ladder failed: micro-20.6k-30steps" in done.err
    assert f"[2/3] micro-{MIDDLE}: failed: " in done.err
    assert "run the same again" in done.err
    # the run of its name with other settings is no member of this ladder
    assert Registry.open().get(earlier.digest).tags == ()
    tagged = {one.name for one in finished() if "micro" in one.tags}
    assert tagged == {f"micro-{SMALL}", f"micro-{LARGE}"}


def test_a_dry_run_makes_nothing(
    command: Ladder, ladder_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("ladder", "micro.toml", "--dry-run", "--json", "--mfu", "0.25")
    assert done.code == 0, done.err
    assert [one["status"] for one in done.members.values()] == ["waiting"] * 3
    assert all(one["epochs"] > 0 for one in done.members.values())
    assert finished() == []
    table = command("ladder", "micro.toml", "--dry-run", "--extrapolate", "--mfu", "0.25")
    assert "25.0% (assumed) of" in table.out
    assert "micro-82.2k" in table.out
    assert "in all" in table.out
    # nor where there is no home: then epochs are not known
    monkeypatch.setenv("BC2_HOME", str(ladder_home / "none"))
    blank = command("ladder", "micro.toml", "--dry-run", "--json")
    assert all(one["epochs"] is None for one in blank.members.values())
    assert not (ladder_home / "none").exists()


def test_the_extrapolation_has_a_tag_of_its_own(command: Ladder) -> None:
    done = command(
        "ladder", "micro.toml", "--json", "--extrapolate", "--only", "82.2k", "--set",
        "ladder.extrapolation.length=4 steps",
    )  # fmt: skip
    assert done.code == 0, done.err
    (made,) = finished()
    assert (made.name, made.tags) == ("micro-82.2k", ("micro-extrapolation",))
    assert done.members["82.2k"]["extrapolation"] is True


def test_more_epochs_than_allowed_are_refused_before_training(command: Ladder) -> None:
    done = command("ladder", "micro.toml", "--set", "pretrain.max_epochs=0.01")
    assert done.code == 2
    assert "max_epochs" in done.err
    assert finished() == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["small.toml"], r"no [ladder] section"),
        (["micro.toml", "--only", "2.61"], "did you mean"),
        (["micro.toml", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["micro.toml", "--mfu", "1.5", "--dry-run"], "no share of the peak"),
        (["micro.toml", "--nproc", "3"], "data-parallel ranks"),
    ],
)
def test_wrong_usage(command: Ladder, args: list[str], said: str) -> None:
    done = command("ladder", *args)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert finished() == []


def test_it_is_not_one_of_several_ranks(command: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = command("ladder", "micro.toml")
    assert done.code == 2
    assert "--nproc" in done.err


def test_ranks_that_share_a_model_are_counted_where_they_are_started(command: Ladder) -> None:
    """The data are made by this one process, which no layout over two ranks fits."""
    assert command("data", "tokenize", "small.toml", "--quiet").code == 0
    shared = ("micro.toml", "--set", "parallel.tensor=2", "--only", MIDDLE)
    done = command("ladder", *shared, "--nproc", "2", "--dry-run")
    assert done.code == 0, done.err
    assert command("ladder", *shared, "--dry-run").code == 2


@pytest.mark.slow
def test_two_ranks_measure_the_same_heldout_tokens(command: Ladder, ladder_home: Path) -> None:
    assert command("ladder", "micro.toml", "--quiet", "--only", MIDDLE).code == 0
    (one,) = finished()
    other = ladder_home / "two"
    trained = shutil.ignore_patterns("checkpoint", "runs", "index*")
    shutil.copytree(ladder_home / "home", other, ignore=trained)
    done = warmed.run(
        [sys.executable, "-P", "-m", "bc2", "ladder", "micro.toml", "--nproc", "2", "--quiet",
         "--only", MIDDLE],
        cwd=ladder_home, env={**os.environ, "BC2_HOME": str(other)}, capture_output=True,
        text=True, children=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (two,) = Registry.open(other).list("checkpoint", finished=True)
    assert done.stdout.split() == [two.ref]
    assert two.key == one.key
    facts = [each.manifest.facts for each in (one, two)]
    assert facts[0]["heldout_sha256"] == facts[1]["heldout_sha256"]
    assert facts[0]["heldout_loss"] == pytest.approx(facts[1]["heldout_loss"], rel=1e-5)
