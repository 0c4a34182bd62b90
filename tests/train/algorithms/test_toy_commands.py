"""What reads and measures runs works on an algorithm of another package by what it declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_runs
from toy_runs import train

from bc2 import recipe
from bc2.cli import main
from bc2.model.model_config import ModelConfig
from bc2.registry import Registry


@pytest.fixture
def bc2(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON that a command prints, run in this process."""

    def run(*words: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*words, "--json"])
        said = capsys.readouterr()
        assert not left.value.code, said.err
        return json.loads(said.out)

    return run


def process(*words: str) -> Any:
    """The same in a process, which may start others."""
    return json.loads(toy_runs.bc2(*words, "--json"))


def test_watch_and_report_show_what_it_declares(toy: Path, bc2: Any) -> None:
    train("critic")
    (folder,) = Registry.open().runs.iterdir()
    step, measured = last_rows(folder)
    seen, written = bc2("watch", "--once"), bc2("report")
    assert seen["metrics"] == written["metrics"]
    found = {name: metric["value"] for name, metric in seen["metrics"].items()}
    names = ("loss", "right", "critic.loss", "critic.error")
    assert found == {**{name: step[name] for name in names}, **measured}
    assert seen["metrics"]["right"].items() >= {
        "label": "ordered right", "over": "pairs", "better": "higher", "headline": True
    }.items()  # fmt: skip
    best = max(row["heldout_right"] for row in every_row(folder) if row["event"] == "eval")
    assert seen["metrics"]["heldout_right"]["best"] == best
    assert [*seen["other_models"]] == ["critic"]
    assert seen["other_models"]["critic"]["learning_rate"] == step["critic.lr"]
    assert (seen["step"], seen["steps"], seen["heldout_loss"]) == (12, 12, None)
    page = Path(written["page"]).read_text()
    for metric in seen["metrics"].values():
        assert metric["label"] in page


def every_row(folder: Path) -> list[dict[str, Any]]:
    return [*map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def last_rows(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last step's, and what the last evaluation measured."""
    step, evaluation = every_row(folder)[-2:]
    return step, {"heldout_right": evaluation["heldout_right"]}


def test_plan_counts_every_model(toy: Path, bc2: Any) -> None:
    """In fp32: 4 bytes of each weight, and 12 more of one that is trained."""
    plan = bc2("plan", "critic.toml", "--device", "h100")
    sizes = {role["name"]: role["parameters"] for role in plan["models"]}
    model = recipe.load("critic.toml").get(ModelConfig)
    own, judge = model.num_params(), model.model_copy(update={"head": "language"}).num_params()
    assert sizes == {"values": own, "judge": judge, "critic": own}
    assert [role["trained"] for role in plan["models"]] == [True, False, True]
    memory = plan["own"]["memory"]
    assert (memory["weights"], memory["moments"]) == (4 * (2 * own + judge), 8 * 2 * own)
    assert plan["disk"]["checkpoint"] == 12 * 2 * own
    assert (plan["steps"], plan["batch"]["rows"]) == (12, 16)
    assert plan["flops"]["token"] == 2 * model.flops_per_token(32)


@pytest.mark.parametrize("name", [pytest.param("toy", marks=pytest.mark.slow), "critic"])
def test_bench_makes_steps_of_its_example(toy: Path, name: str) -> None:
    measured = process(
        "bench", f"{name}.toml", "--steps", "1", "--rounds", "1", "--no-checkpoint", "--no-save"
    )
    verb = {"toy": "toy", "critic": "toy_critic"}[name]
    assert measured["settings"]["algorithm"] == verb
    assert measured["settings"]["headline"] == "ordered right"
    assert measured["batch_tokens"] == 16 * 32
    (ours,) = measured["contenders"]
    assert ours["failed"] is None
    assert 0 <= ours["loss"] <= 1


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("toy", []),
        pytest.param("toy", ["--ranks", "2"], marks=pytest.mark.slow),
        pytest.param("critic", ["--ranks", "2"], marks=pytest.mark.slow),
    ],
)
def test_verify_resume_proves_it(toy: Path, name: str, ranks: list[str]) -> None:
    """Killed it ends in the same bits; with other ranks it finds the same losses."""
    found = process(
        "verify", "resume", f"{name}.toml", "--steps", "4", "--kills", "1", *ranks
    )  # fmt: skip
    assert found["holds"]
    assert all(one["same"] for one in found["comparisons"])
    assert len(found["comparisons"]) >= 1 + len(ranks) // 2
