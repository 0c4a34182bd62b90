"""The loop by itself, ended early: signals, saves, evaluations and data that fail, and all at once.

Everything around it is fake, as in test_loop_alone.
"""

from __future__ import annotations

from typing import Any

import pytest
from fake_ends import TWO, bad_step, positions, span, straight
from fake_run import (
    FakeRun,
    Killed,
    failing,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bc2.errors import BadTraining, DataError, Interrupted, ResourceError, RunFailed

# -- stopped by a signal

MOMENTS = [
    ("give", span(5)[0], 4),
    ("accumulate", span(5)[0], 4),
    ("accumulate", span(5)[2], 4),
    ("accumulate", span(5)[3], 5),
    ("update model", 5, 5),
    ("row", 5, 5),
    ("evaluate", 4, 4),
    ("publish", 3, 4),
]


@pytest.mark.parametrize(("moment", "at", "step"), MOMENTS)
@pytest.mark.parametrize("stateful", [False, True])
def test_a_signal(
    moment: str, at: int, step: int, stateful: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun(stateful=stateful)
    run.actions[moment, at] = run.terminate
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 8; everything is") as caught:
        run.attempt()
    assert caught.value.exit_code == 143
    assert caught.value.todo == "go on with: bc2 toy"
    assert positions(run) == [(3, 12), (step, 4 * step)]
    assert run.saves[-1].stream == ({"given": step} if stateful else None)
    (row,) = [row for row in run.log.times if row["event"] == "stop"]
    assert (row["step"], row["next_sample"], row["signal"]) == (step, 4 * step, 15)
    assert [row for row in run.log.times if row["event"] == "fail"] == []
    assert run.attempt() == straight(stateful=stateful)
    # Nothing that was completed is made again.
    again = {4: 2} if step == 4 and moment != "give" and moment != "accumulate" else {}
    assert run.made("evaluate") == [
        ("evaluate", at) for at in (0, 4, 8) for _ in range(again.get(at, 1))
    ]
    assert len(run.made("update")) == 8


def test_a_signal_before_the_first_step_saves_nothing() -> None:
    run = FakeRun()
    run.actions["evaluate", 0] = run.terminate
    with pytest.raises(Interrupted, match="stopped at step 0 of 8"):
        run.attempt()
    assert run.saves == []
    assert run.attempt() == straight()


def test_a_signal_in_the_last_evaluation() -> None:
    run = FakeRun()
    run.actions["evaluate", 8] = run.terminate
    with pytest.raises(Interrupted, match="stopped at step 8 of 8"):
        run.attempt()
    assert positions(run)[-1] == (8, 32)
    assert not run.saves[-1].finished
    assert run.attempt() == straight()
    assert len(run.made("update")) == 8


def test_a_signal_in_the_last_evaluation_after_a_rollback() -> None:
    settings: dict[str, Any] = {
        "total": 6, "save_every": 3, "action": "rollback", "bad": bad_step(5, "loss"),
    }  # fmt: skip
    run = FakeRun(**settings)
    run.actions["evaluate", 6] = run.terminate
    with pytest.raises(Interrupted, match="stopped at step 6 of 6"):
        run.attempt()
    end = run.attempt()
    assert end == straight(**settings)
    assert end.guard == ([], 0, 1), "rollbacks since the last checkpoint on schedule"


def test_a_signal_between_a_rollback_and_the_next_step() -> None:
    settings: dict[str, Any] = {"bad": bad_step(6, "loss"), "action": "rollback", "stateful": True}
    run = FakeRun(**settings)
    run.actions["row", 3] = lambda: run.actions.update({("row", 3): run.terminate})
    with pytest.raises(Interrupted, match="stopped at step 3 of 8"):
        run.attempt()
    # Nothing was made since, and the checkpoint that it went back to is there.
    assert positions(run) == [(0, 0), (3, 12)]
    assert run.attempt() == straight(**settings)


@pytest.mark.parametrize("at", ["give", "accumulate"])
def test_several_ranks_stop_between_two_steps_only(at: str) -> None:
    run = FakeRun(ranks=2, stateful=True)
    run.actions[at, span(5)[0]] = run.terminate
    with pytest.raises(Interrupted) as caught:
        run.attempt()
    step = {"give": 4, "accumulate": 5}[at]
    assert f"stopped at step {step} of 8" in caught.value.what
    assert positions(run) == [(3, 12), (step, 4 * step)]
    assert len(run.made("accumulate")) == 4 * step, "no step is abandoned"
    assert run.attempt() == straight(ranks=2, stateful=True)


def test_a_rank_follows_another_that_is_to_stop() -> None:
    run = FakeRun(ranks=2)
    run.actions["other rank stops", span(5)[0]] = lambda: None
    with pytest.raises(Interrupted, match="stopped at step 4") as caught:
        run.attempt()
    assert caught.value.exit_code == 143
    assert run.attempt() == straight(ranks=2)


# -- saves that fail


def test_a_failed_save_is_found_after_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun()
    run.actions["publish", 6] = failing(RunFailed("the disk is gone"))
    with pytest.raises(RunFailed, match="the disk is gone"):
        run.attempt()
    assert run.events()[-1] == ("step", 7)
    assert run.made("save")[-1] == ("save", 6), "no save after one that failed"
    assert positions(run) == [(3, 12)]
    (row,) = [row for row in run.log.times if row["event"] == "fail"]
    assert (row["step"], row["what"], row["saved"]) == (7, "the disk is gone", 3)
    assert "step 3 is saved; go on from there with: bc2 toy" in capsys.readouterr().err
    assert run.attempt() == straight()


def test_a_last_save_that_fails_is_not_missed() -> None:
    run = FakeRun()
    run.actions["publish", 8] = failing(ResourceError("disk full"))
    with pytest.raises(ResourceError, match="disk full"):
        run.attempt()
    assert positions(run) == [(3, 12), (6, 24)]
    assert run.attempt() == straight()


def test_a_save_after_a_signal_that_fails_is_no_interruption() -> None:
    run = FakeRun()
    run.actions["give", span(5)[0]] = run.terminate
    run.actions["publish", 4] = failing(ResourceError("disk full"))
    with pytest.raises(ResourceError, match="disk full"):
        run.attempt()
    assert positions(run) == [(3, 12)]
    assert run.attempt() == straight()


def test_on_a_full_disk_nothing_more_is_saved() -> None:
    run = FakeRun()
    run.actions["row", 5] = failing(ResourceError("disk full while writing metrics.jsonl"))
    with pytest.raises(ResourceError) as caught:
        run.attempt()
    assert caught.value.where == "step 5, samples 16 to 19"
    assert run.made("save") == [("save", 3)]
    assert run.attempt() == straight()


def test_a_save_under_way_is_waited_for_when_the_disk_is_full() -> None:
    run = FakeRun(save_every=4)
    run.actions["give", span(5)[0]] = failing(ResourceError("disk full"))
    with pytest.raises(ResourceError):
        run.attempt()
    assert positions(run) == [(4, 16)]


# -- evaluations


def test_an_evaluation_on_the_way_that_is_nan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(spoiled={4})
    assert run.attempt().finished
    assert [row["held"] == "nan" for row in run.rows if row["event"] == "eval"] == [
        False, True, False,
    ]  # fmt: skip
    assert "warning: step 4: held-out score nan" in capsys.readouterr().err
    assert "held nan" in run.shown[4][1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_whose_last_evaluation_is_nan_is_never_finished(
    ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun(spoiled={8}, ranks=ranks)
    with pytest.raises(BadTraining, match="the held-out score is nan after the last step"):
        run.attempt()
    assert positions(run) == [(3, 12), (6, 24), (8, 32)]
    assert not any(saved.finished for saved in run.saves)
    assert (run.rows[-2]["step"], run.rows[-2]["held"]) == (8, "nan")
    assert run.saves[-1].rows[-1]["event"] == "step", "it can be evaluated anew"
    assert "step 8 is saved" in capsys.readouterr().err
    run.spoiled = set()
    assert run.attempt() == straight(ranks=ranks)
    assert len(run.made("update")) == 8


def test_an_evaluation_that_fails_is_named() -> None:
    run = FakeRun()
    run.actions["evaluate", 4] = failing(DataError("no such shard", where="held/0.bin"))
    with pytest.raises(DataError, match="no such shard, at the evaluation after step 4"):
        run.attempt()
    assert positions(run) == [(3, 12), (4, 16)]
    assert run.attempt() == straight()


# -- errors in a step


@pytest.mark.parametrize("where", [None, "tokens/3.bin"])
def test_data_that_cannot_be_read(where: str | None) -> None:
    run = FakeRun(stateful=True)
    run.actions["give", span(6)[0]] = failing(DataError("the shard ends early", where=where))
    with pytest.raises(DataError) as caught:
        run.attempt()
    place = "step 6, samples 20 to 23"
    if where is None:
        assert (caught.value.what, caught.value.where) == ("the shard ends early", place)
    else:
        what = f"the shard ends early, at {place}"
        assert (caught.value.what, caught.value.where) == (what, where)
    assert positions(run) == [(3, 12), (5, 20)]
    assert run.saves[-1].stream == {"given": 5}
    (row,) = [row for row in run.log.times if row["event"] == "fail"]
    assert (row["step"], row["samples"], row["saved"]) == (6, [20, 23], 5)
    assert run.attempt() == straight(stateful=True)


def test_several_ranks_do_not_save_at_an_error_of_one() -> None:
    run = FakeRun(ranks=2)
    run.actions["accumulate", span(6)[0]] = failing(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        run.attempt()
    assert positions(run) == [(3, 12)]
    assert run.attempt() == straight(ranks=2)


def test_an_error_in_a_step_saves_the_step_before() -> None:
    run = FakeRun(roles=TWO)
    run.actions["accumulate", span(6)[2]] = failing(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        run.attempt()
    assert positions(run) == [(3, 12), (5, 20)]
    assert all(engine.gradient == 0 for engine in run.engines.values())
    assert run.attempt() == straight(roles=TWO)


@pytest.mark.parametrize("role", TWO)
def test_an_error_in_an_update_saves_nothing(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Some weights are new and some old: such a state must not be gone on from."""
    run = FakeRun(roles=TWO)
    run.actions[f"update {role}", 5] = failing(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        run.attempt()
    assert positions(run) == [(3, 12)]
    assert "step 3 is saved; go on from there with: bc2 toy" in capsys.readouterr().err
    assert run.attempt() == straight(roles=TWO)


# -- anything, at any time

CHANCES = st.tuples(
    st.sampled_from(
        ["give", "accumulate", "update model", "update critic", "row", "evaluate", "publish"]
    ),
    st.integers(0, 50),
    st.sampled_from(["stop", "kill", "fail", "full"]),
)
BAD = st.dictionaries(
    st.tuples(st.sampled_from(TWO), st.integers(0, 50)),
    st.sampled_from(["loss", "gradient", "metric"]),
    max_size=4,
)
SETTINGS = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["skip", "rollback"]),
        "stateful": st.booleans(),
        "ranks": st.sampled_from([1, 2]),
        "roles": st.sampled_from([("model",), TWO]),
        "total": st.integers(1, 9),
        "save_every": st.integers(1, 4),
        "eval_every": st.integers(1, 4),
        "log_every": st.integers(1, 3),
        "bad": BAD,
    }
)


ALL_BAD = {
    "action": "skip",
    "stateful": True,
    "ranks": 1,
    "roles": TWO,
    "total": 1,
    "save_every": 1,
    "eval_every": 4,
    "log_every": 1,
    "bad": {("model", 0): "loss", ("model", 19): "loss", ("model", 42): "gradient"},
}


@example(ALL_BAD, [])
@settings(max_examples=25, deadline=None)
@given(SETTINGS, st.lists(CHANCES, max_size=6))
def test_whatever_happens_the_end_is_the_same(
    settings: dict[str, Any], chances: list[tuple[str, int, str]]
) -> None:
    run = FakeRun(**settings)
    kinds = {
        "stop": run.terminate,
        "kill": run.kill,
        "fail": failing(RunFailed("a fault")),
        "full": failing(ResourceError("disk full")),
    }
    run.actions = {(moment, at): kinds[kind] for moment, at, kind in chances}
    expected = (Interrupted, Killed, RunFailed, ResourceError)
    try:
        end = straight(**settings)
    except BadTraining:  # every step was bad
        with pytest.raises(BadTraining):
            run.attempt_until_done(*expected)
    else:
        assert run.attempt_until_done(*expected) == end
