"""The loop by itself: what it does in which order, and what is left when something goes wrong.

Everything around it is fake (tests/train/fakes), so that each case is a whole run in milliseconds.
"""

from __future__ import annotations

from typing import Any

import pytest
from fake_run import (
    METRICS,
    ROWS,
    FakeRun,
    Killed,
    Saved,
    answers_of,
    failing,
    labels_of,
    pairs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import BadTraining, DataError, Interrupted, ResourceError, RunFailed
from bc2.train.metric import Metric, Metrics

TWO = ("model", "critic")


def straight(**settings: Any) -> Saved:
    """The end of a run that nothing happens to."""
    return FakeRun(**settings).attempt()


def positions(run: FakeRun) -> list[tuple[int, int]]:
    return [(saved.step, saved.samples) for saved in run.saves]


def span(step: int) -> range:
    """The samples of a step, counted from 1, if nothing is left out."""
    return range((step - 1) * ROWS, step * ROWS)


def bad_step(step: int, what: str, role: str = "model") -> dict[tuple[str, int], str]:
    """In the second micro-batch."""
    return {(role, span(step)[1]): what}


# -- a run that nothing happens to


def test_a_whole_run() -> None:
    run = FakeRun(total=8, save_every=3, eval_every=4, stateful=True)
    end = run.attempt()
    assert (end.step, end.samples, end.finished, end.stream) == (8, 32, True, {"given": 8})
    assert end.facts == {"held": end.rows[-2]["held"]}
    assert [(s.step, s.scheduled, s.finished) for s in run.saves] == [
        (3, True, False), (6, True, False), (8, False, True),
    ]  # fmt: skip
    steps = [("step", step) for step in range(1, 9)]
    assert run.events() == [
        ("eval", 0), ("sample", 0), *steps[:4], ("eval", 4), ("sample", 4), *steps[4:],
        ("eval", 8), ("sample", 8),
    ]  # fmt: skip
    assert [row["samples"] for row in run.rows if row["event"] == "step"] == [
        [span(step)[0], span(step)[-1]] for step in range(1, 9)
    ]
    assert [row["tokens"] for row in run.rows if row["event"] == "step"] == [
        12 * step for step in range(1, 9)
    ]
    # Each sample once, in order; an update after the last of its step.
    once = [("accumulate", "model", sample) for sample in range(32)]
    assert run.made("accumulate") == once
    order = run.made("accumulate", "update", "evaluate", "save")
    assert [call[0] for call in order[:6]] == ["evaluate", *["accumulate"] * 4, "update"]
    at = order.index(("evaluate", 4))
    assert [call[0] for call in order[at - 1 : at + 2]] == ["update", "evaluate", "accumulate"]
    assert run.made("open stream") == [("open stream", 0)]
    assert sum(advance for advance, _ in run.shown) == 8


def test_what_a_row_and_the_progress_line_say() -> None:
    run = FakeRun(total=2, eval_every=1, clip_norm=3.0)
    run.attempt()
    first, second = (row for row in run.rows if row["event"] == "step")
    assert [*first] == [
        "event", "step", "tokens", "samples", "loss", "right", "size", "grad_norm", "clipped", "lr",
    ]  # fmt: skip
    assert (first["lr"], second["lr"]) == (0.1, 0.05)
    assert (first["clipped"], first["grad_norm"]) == (False, pytest.approx(first["loss"]))
    held = next(row["held"] for row in run.rows if row["event"] == "eval")
    (_, shown), _ = run.shown
    said = (
        f"objective {first['loss']:.3f}  held {held:.3f}  |g| {first['grad_norm']:.2f}  lr 1.0e-01"
    )
    assert shown.startswith(said)
    assert shown.endswith("MFU 0%")
    timed = [row for row in run.log.times if row["event"] == "step"]
    assert [(row["step"], row["step_s"] > 0) for row in timed] == [(1, True), (2, True)]


def test_a_clipped_step_is_marked() -> None:
    run = FakeRun(total=1, clip_norm=0.01, evaluated=False)
    run.attempt()
    assert run.rows[0]["clipped"] is True
    assert "|g| 0.52*  lr" in run.shown[0][1] or "*  lr" in run.shown[0][1]
    assert "held" not in run.shown[0][1]


def test_rows_are_written_as_often_as_asked_and_at_the_end() -> None:
    run = FakeRun(total=12, log_every=5, evaluated=False)
    end = run.attempt()
    assert run.events() == [("step", 5), ("step", 10), ("step", 12)]
    assert [row["samples"] for row in run.rows] == [[16, 19], [36, 39], [44, 47]]
    every = straight(total=12, evaluated=False)
    assert (end.models, end.facts) == (every.models, None)
    assert run.rows == [row for row in every.rows if row["step"] in (5, 10, 12)]


@pytest.mark.parametrize("divisor", ["tokens", "samples", "pairs"])
def test_each_metric_is_averaged_over_its_own_weight(divisor: str) -> None:
    run = FakeRun(total=1, divisor=divisor, evaluated=False)
    weight = len("model") / 10
    run.attempt()
    (row,) = run.rows
    samples = span(1)
    pairs = sum(map(pairs_of, samples))
    answers = sum(map(answers_of, samples))
    assert row["right"] == pytest.approx(sum(weight + s for s in samples) / pairs)
    assert row["size"] == pytest.approx(weight * answers / answers)
    assert "answers" not in row, "it is only divided by"
    tokens = sum(map(labels_of, samples))
    over = {"tokens": tokens, "samples": ROWS, "pairs": pairs}[divisor]
    by_tokens = straight(total=1, evaluated=False).rows[0]["loss"]
    assert row["loss"] * over == pytest.approx(by_tokens * tokens)
    assert row["grad_norm"] == pytest.approx(row["loss"])


def test_a_mean_over_nothing_is_not_a_number() -> None:
    sums = {"size": 1.0, "answers": 0.0}
    run = FakeRun(total=1, evaluated=False, further_sums=sums)
    run.attempt()
    assert run.rows[0]["size"] == "nan"


def test_a_sum_that_is_no_metric_is_an_error() -> None:
    run = FakeRun(further_sums={"other": 1.0})
    with pytest.raises(ValueError, match="other is summed by an objective and no declared metric"):
        run.attempt()
    assert run.made("update", "save") == []


def test_a_metric_over_what_nobody_sums_is_an_error() -> None:
    odd = Metrics((*METRICS.all[:2], Metric("size", "size", over="nothing")))
    run = FakeRun(metrics=odd, further_sums={})
    with pytest.raises(ValueError, match="size is averaged over nothing, which is no weight"):
        run.attempt()
    assert run.made("update", "save") == []


@pytest.mark.parametrize(
    ("divisor", "what"), [("tokens", "supervised token"), ("pairs", "pairs"), ("samples", None)]
)
def test_a_step_of_no_weight_is_an_error(divisor: str, what: str | None) -> None:
    run = FakeRun(divisor=divisor, empty={span(6)[0]}, metrics=unguarded())
    if what is None:
        assert run.attempt().finished
        return
    with pytest.raises(RunFailed, match=f"no {what} in samples 20 to 23") as caught:
        run.attempt()
    assert caught.value.where == "step 6, samples 20 to 23"
    assert positions(run) == [(3, 12), (5, 20)]
    assert len(run.made("accumulate")) == 20


def unguarded() -> Metrics:
    return Metrics(tuple(Metric(**{**vars(m), "guarded": False}) for m in METRICS.all))


# -- two models


def test_two_models_are_measured_before_either_is_updated() -> None:
    run = FakeRun(total=3, roles=TWO, evaluated=False)
    end = run.attempt()
    of_a_step = [
        *[("accumulate", "model", sample) for sample in span(1)],
        *[("accumulate", "critic", sample) for sample in span(1)],
        ("update", "model", 0.1),
        ("update", "critic", 0.2),
    ]
    assert run.made("accumulate", "update")[:10] == of_a_step
    assert [(row["lr"], row["critic.lr"]) for row in run.rows] == [
        (0.1, 0.2), (0.05, 0.1), (0.1 / 3, 0.2 / 3),
    ]  # fmt: skip
    assert {*run.rows[0]} >= {"critic.loss", "critic.grad_norm", "critic.clipped", "critic.size"}
    assert "critic.answers" not in run.rows[0]
    assert [*end.models] == ["", "critic"]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("loss", "loss is nan"),
        ("gradient", "gradient norm is inf"),
        ("metric", "right is nan"),
    ],
)
@pytest.mark.parametrize("role", TWO)
def test_a_bad_step_of_either_changes_neither(
    role: str, what: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun(roles=TWO, bad=bad_step(4, what, role), save_every=1)
    run.attempt()
    (row,) = [row for row in run.rows if row["event"] == "skip"]
    assert (row["step"], row["samples"]) == (4, [12, 15])
    assert row["reason"] == (reason if role == "model" else f"critic {reason}")
    assert row["sources"] == {"even": 2, "odd": 2}
    said = f"warning: {row['reason']} at step 4, samples 12 to 15 (even 2, odd 2): skipped"
    assert said in capsys.readouterr().err
    before, after, following = (run.saves[index] for index in (2, 3, 4))
    assert (after.step, after.samples) == (4, 16)
    assert after.models == before.models
    assert all(following.models[name] != after.models[name] for name in after.models)
    assert [saved.guard[1] for saved in (before, after, following)] == [0, 1, 0]
    assert len(run.made("update")) == 2 * 7
    assert ("step", 4) not in run.events()


def test_sources_without_names_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    FakeRun(bad=bad_step(4, "loss"), sources=()).attempt()
    assert "loss is nan at step 4, samples 12 to 15: skipped" in capsys.readouterr().err


def test_a_rollback_brings_both_models_back() -> None:
    run = FakeRun(roles=TWO, bad=bad_step(5, "loss", "critic"), action="rollback")
    run.attempt()
    assert run.made("restore") == [("restore", "model"), ("restore", "critic")]
    assert run.saves[-1].models.keys() == {"", "critic"}


# -- bad steps


def test_a_skipped_step_leaves_the_update_out_and_nothing_else() -> None:
    run = FakeRun(bad=bad_step(2, "loss"), stateful=True)
    end = run.attempt()
    assert (end.step, end.samples, end.stream) == (8, 32, {"given": 8})
    assert run.events("step", "skip") == [
        ("step", 1), ("skip", 2), *[("step", step) for step in range(3, 9)],
    ]  # fmt: skip
    assert [row["lr"] for row in run.rows if row["event"] == "step"][1] == 0.1 / 3
    assert sum(advance for advance, _ in run.shown) == 8


def test_too_many_bad_steps_end_the_run() -> None:
    bad = bad_step(3, "loss") | bad_step(5, "loss") | bad_step(6, "gradient") | bad_step(7, "loss")
    run = FakeRun(bad=bad, max_bad=3, stateful=True)
    with pytest.raises(BadTraining, match=r"loss is nan \(bad steps or .* progress: 3\)") as caught:
        run.attempt()
    assert caught.value.where == "step 7, samples 24 to 27"
    assert "a higher toy.guard.max_bad" in str(caught.value.todo)
    # What is saved knows nothing of the step at which it ended, so that it can be met anew.
    assert positions(run) == [(3, 12), (6, 24)]
    assert run.saves[-1].guard[1] == 2
    assert run.saves[-1].stream == {"given": 6}
    assert run.events()[-1] == ("stop", 7)
    assert run.saves[-1].rows[-1]["event"] == "skip"
    (row,) = [row for row in run.log.times if row["event"] == "fail"]
    assert (row["step"], row["samples"], row["saved"]) == (7, [24, 27], 6)
    run.max_bad = 4
    assert run.attempt() == straight(bad=bad, stateful=True)


def test_bad_steps_are_counted_over_an_interruption() -> None:
    bad = bad_step(4, "loss") | bad_step(5, "loss") | bad_step(6, "loss")
    run = FakeRun(bad=bad, max_bad=3)
    run.actions["give", span(6)[0]] = run.terminate
    with pytest.raises(Interrupted, match="stopped at step 5"):
        run.attempt()
    with pytest.raises(BadTraining, match="progress: 3") as caught:
        run.attempt()
    assert caught.value.where == "step 6, samples 20 to 23"


def test_a_good_step_makes_up_for_bad_ones() -> None:
    bad = {key: "loss" for step in (2, 4, 6, 8) for key in bad_step(step, "loss")}
    assert FakeRun(bad=bad, max_bad=2).attempt().finished


@pytest.mark.parametrize("ranks", [1, 2])
def test_to_stop_at_a_bad_step(ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(bad=bad_step(5, "loss"), action="stop", ranks=ranks)
    with pytest.raises(BadTraining, match="loss is nan") as caught:
        run.attempt()
    assert caught.value.where == "step 5, samples 16 to 19"
    # On several ranks too, since all of them come to the same judgement.
    assert positions(run) == [(3, 12), (4, 16)]
    assert "step 4 is saved; go on from there with: bc2 toy" in capsys.readouterr().err
    assert run.events()[-1] == ("stop", 5)
    assert "stop" not in [row["event"] for row in run.saves[-1].rows], "it can be met anew"


def test_a_rollback_goes_back_and_leaves_the_data_out(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(bad=bad_step(6, "gradient"), action="rollback", stateful=True, eval_every=3)
    end = run.attempt()
    (row,) = [row for row in run.rows if row["event"] == "rollback"]
    # Saved at step 3; samples of the steps 4, 5 and 6 are left out.
    assert (row["step"], row["from_step"], row["samples"]) == (3, 6, [12, 23])
    assert row["reason"] == "gradient norm is inf"
    assert "back at step 3; samples 12 to 23 are left out" in capsys.readouterr().err
    assert (end.step, end.samples) == (8, 32 + 12)
    assert end.stream == {"given": 8}, "as of the steps that count"
    assert run.made("open stream") == [("open stream", 0), ("open stream", 24)]
    spans = [row["samples"][0] for row in run.rows if row["event"] == "step"]
    assert spans == [0, 4, 8, 24, 28, 32, 36, 40]
    assert positions(run) == [(0, 0), (3, 12), (6, 36), (8, 44)]
    # Made again with the weights of step 6, and not again for those of step 3.
    assert run.made("evaluate") == [("evaluate", step) for step in (0, 3, 6, 8)]
    assert sum(advance for advance, _ in run.shown) == 8


def test_a_rollback_before_the_first_checkpoint() -> None:
    run = FakeRun(bad=bad_step(2, "loss"), action="rollback")
    run.attempt()
    (row,) = [row for row in run.rows if row["event"] == "rollback"]
    assert (row["step"], row["samples"]) == (0, [0, 7])
    assert run.saves[0].step == 0


def test_rollbacks_without_progress_end_the_run() -> None:
    bad = {("model", sample): "loss" for sample in range(5, 400, 8)}
    run = FakeRun(bad=bad, action="rollback", max_bad=4)
    with pytest.raises(BadTraining, match="without progress: 4"):
        run.attempt()
    assert run.events()[-1] == ("stop", 2)
    assert len(run.made("restore")) == 3
    assert positions(run) == [(0, 0), (1, 28)]
    assert run.saves[-1].guard == ([], 0, 3), "counted over the interruption"


def test_a_scheduled_checkpoint_is_progress() -> None:
    bad = {("model", sample): "loss" for sample in range(17, 400, 20)}
    run = FakeRun(total=20, bad=bad, action="rollback", max_bad=2)
    assert run.attempt().finished
    assert len(run.made("restore")) > 2


def test_an_anchor_that_cannot_be_read_saves_the_step_before() -> None:
    run = FakeRun(bad=bad_step(6, "loss"), action="rollback")
    run.actions["accumulate", span(6)[0]] = lambda: setattr(
        run.loop.saver, "load_anchor", failing(DataError("the anchor is gone"))
    )
    with pytest.raises(DataError, match="the anchor is gone"):
        run.attempt()
    assert positions(run) == [(0, 0), (3, 12), (5, 20)]
    assert run.attempt() == straight(bad=bad_step(6, "loss"), action="rollback")


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
    end = run.attempt_until_done(Interrupted, Killed, RunFailed, ResourceError)
    assert end == straight(**settings)
