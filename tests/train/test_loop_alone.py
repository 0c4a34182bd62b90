"""The loop by itself: what it does in which order, and what it does about bad steps.

Everything around it is fake (`tests/train/made`), so that each case is a whole run in milliseconds.
"""

from __future__ import annotations

import pytest
from fake_ends import TWO, bad_step, positions, span, straight
from fake_run import (
    METRICS,
    ROWS,
    FakeRun,
    answers_of,
    failing,
    labels_of,
    pairs_of,
)

from bc2.errors import BadTraining, DataError, Interrupted, RunFailed
from bc2.train.metric import Metric, Metrics

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
