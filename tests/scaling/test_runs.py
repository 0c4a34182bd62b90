"""Which runs are points of one law, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest

from bc2.errors import DataError, RefError
from bc2.model.model_config import ModelConfig
from bc2.scaling.runs import points_of_runs, select_runs


def test_points_are_the_ends_of_runs(fake_runs) -> None:  # type: ignore[no-untyped-def]
    members = fake_runs.ladder(3)
    found = points_of_runs(fake_runs.registry, members)
    assert found.points.names == ("rungs-0", "rungs-1", "rungs-2")
    assert found.points.tokens.tolist() == [one.position.tokens for one in members]
    shape = ModelConfig(**members[1].manifest.recipe["model"])
    assert found.points.params[1] == shape.num_params_non_embedding()
    assert found.points.flops[1] == 6 * found.points.params[1] * found.points.tokens[1]
    assert found.points.loss[1] == members[1].manifest.facts["heldout_loss"]
    assert found.seed_noise is None


def test_conventions_change_what_is_counted(fake_runs) -> None:  # type: ignore[no-untyped-def]
    members = fake_runs.ladder(2)
    shape = ModelConfig(**members[0].manifest.recipe["model"])
    found = points_of_runs(fake_runs.registry, members, "total", "counted").points
    assert found.params[0] == shape.num_params()
    assert found.flops[0] == members[0].position.tokens * shape.flops_per_token(64)
    assert (found.conventions.params, found.conventions.flops) == ("total", "counted")


def test_the_newest_ladder_is_taken_and_said(fake_runs, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    fake_runs.ladder(2, tag="old")
    members = fake_runs.ladder(3, tag="rungs")
    fake_runs.run("alone", 2, 50, 5.0)
    assert [one.digest for one in select_runs(fake_runs.registry, ())] == [
        one.digest for one in members
    ]
    assert "taking the newest ladder, rungs, of 3 runs" in capsys.readouterr().err


def test_runs_by_name_and_by_tag(fake_runs) -> None:  # type: ignore[no-untyped-def]
    members = fake_runs.ladder(3)
    alone = fake_runs.run("alone", 2, 50, 5.0)
    found = select_runs(fake_runs.registry, ["alone", "rungs"])
    assert [one.name for one in found] == ["alone", *(one.name for one in members)]
    assert select_runs(fake_runs.registry, [alone.digest[:12]])[0].digest == alone.digest
    with pytest.raises(RefError, match="did you mean the tag 'rungs'"):
        select_runs(fake_runs.registry, ["rung"])


def test_no_ladder_names_the_ways_to_one(fake_runs) -> None:  # type: ignore[no-untyped-def]
    fake_runs.run("alone", 2, 50, 5.0)
    with pytest.raises(RefError, match="there is no ladder here") as caught:
        select_runs(fake_runs.registry, ())
    assert "bc2 ladder recipes/ladder-cpu.toml" in str(caught.value)
    assert "--points" in str(caught.value)


def test_an_intermediate_loss_is_no_point(fake_runs) -> None:  # type: ignore[no-untyped-def]
    half = fake_runs.run("half", 2, 50, 5.0, finished=False)
    with pytest.raises(DataError, match="not the end of its run"):
        points_of_runs(fake_runs.registry, [*fake_runs.ladder(2), half])


def test_a_run_that_diverged_is_refused(fake_runs) -> None:  # type: ignore[no-untyped-def]
    bad = fake_runs.run("bad", 2, 50, 5.4, evals=(9.0, 5.1))
    with pytest.raises(DataError, match=r"bad@50 diverged: .* was 5.100 and ended at 5.400"):
        points_of_runs(fake_runs.registry, [bad])


def test_a_run_without_a_loss_is_refused(fake_runs) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="no held-out loss"):
        points_of_runs(fake_runs.registry, [fake_runs.run("mute", 2, 50, 5.0, facts={})])


def test_a_run_of_other_weights_or_another_algorithm_is_refused(fake_runs) -> None:  # type: ignore[no-untyped-def]
    on = fake_runs.run("on", 2, 50, 5.0, init="half")
    with pytest.raises(DataError, match=r"on@50 began with the weights of another run"):
        points_of_runs(fake_runs.registry, [*fake_runs.ladder(2), on])
    tuned = fake_runs.run("tuned", 2, 50, 5.0, section="tune")
    with pytest.raises(DataError, match="tuned@50 is not of pretraining"):
        points_of_runs(fake_runs.registry, [tuned])


def test_a_run_named_twice_is_refused(fake_runs) -> None:  # type: ignore[no-untyped-def]
    one = fake_runs.run("one", 2, 50, 5.0)
    with pytest.raises(DataError, match="are one run"):
        points_of_runs(fake_runs.registry, [one, one])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("tokenizer", "another tokenizer"),
        ("corpus", "another corpus"),
        ("heldout", "another held-out set"),
        ("schedule", "another schedule"),
        ("shape", "another shape of the schedule"),
    ],
)
def test_runs_that_cannot_be_compared(  # type: ignore[no-untyped-def]
    changed: str, says: str, fake_runs, capsys: pytest.CaptureFixture[str]
) -> None:
    members = fake_runs.ladder(2)
    others = {
        "heldout": {"heldout": "bb"}, "schedule": {"min_ratio": 0.5}, "shape": {"shape": "linear"},
    }  # fmt: skip
    if changed == "tokenizer":
        tokens = fake_runs.other_tokens(tokenizer=True)
        pieces = fake_runs.registry.resolve("tokenizer/others")
        odd = fake_runs.run("odd", 3, 50, 5.0, tokens=tokens, tokenizer=pieces)
    elif changed == "corpus":
        odd = fake_runs.run("odd", 3, 50, 5.0, tokens=fake_runs.other_tokens())
    else:
        odd = fake_runs.run("odd", 3, 50, 5.0, **others[changed])
    with pytest.raises(DataError, match=f"rungs-0 and odd have {says}") as caught:
        points_of_runs(fake_runs.registry, [*members, odd])
    assert "--mix" in str(caught.value)
    mixed = points_of_runs(fake_runs.registry, [*members, odd], mix=True)
    assert len(mixed.points) == 3
    assert says in capsys.readouterr().err


def test_runs_of_an_earlier_bc2_have_no_digest_of_held_out_tokens(fake_runs) -> None:  # type: ignore[no-untyped-def]
    old = fake_runs.run("old", 3, 50, 5.0, facts={"heldout_loss": 5.0, "heldout_tokens": 4096})
    assert len(points_of_runs(fake_runs.registry, [*fake_runs.ladder(2), old]).points) == 3
    less = fake_runs.run("less", 4, 50, 5.0, facts={"heldout_loss": 5.0, "heldout_tokens": 99})
    with pytest.raises(DataError, match="held-out set"):
        points_of_runs(fake_runs.registry, [*fake_runs.ladder(2), less])


def test_noise_between_seeds(fake_runs) -> None:  # type: ignore[no-untyped-def]
    # the first as an earlier bc2 recorded it, which had the cosine alone
    twins = [fake_runs.run(f"s{seed}", 2, 50, loss, seed=seed, shape="cosine" if seed else None)
             for seed, loss in enumerate((5.0, 5.05, 4.96))]  # fmt: skip
    found = points_of_runs(fake_runs.registry, [*fake_runs.ladder(2), *twins])
    assert found.seed_noise == pytest.approx(np.std(np.log([5.0, 5.05, 4.96]), ddof=1))
