"""`bc2 fit-scaling-law` as it is typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.cli import main
from bc2.registry import Registry

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute() / "scaling"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / ".bc2"))
    return tmp_path


def bc2(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["fit-scaling-law", *args])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def table(folder: Path, count: int = 9, noise: float = 0.002) -> Path:
    params = np.geomspace(1e7, 3e9, count)
    tokens = params * np.array([20, 100, 8, 60, 15, 150, 30, 5, 40])[:count]
    errors = np.random.default_rng(0).standard_normal(count)
    loss = (1.8 + 480 / params**0.35 + 2000 / tokens**0.37) * np.exp(noise * errors)
    rows = [f"{n!r},{d!r},{x!r}" for n, d, x in zip(*map(np.ndarray.tolist, (params, tokens, loss)),
                                                    strict=True)]  # fmt: skip
    path = folder / "runs.csv"
    path.write_text("\n".join(["params,tokens,loss_nats", *rows, ""]))
    return path


def result(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert bc2(*args, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_table_becomes_a_registered_law(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    found = result(capsys, "--points", str(path))
    assert found["form"] == "chinchilla"
    for symbol in ("E", "A", "alpha", "B", "beta"):
        assert found[symbol]["low"] <= found[symbol]["value"]
    assert found["conventions"] == {"loss": "nats", "params": "unstated", "flops": "6ND"}
    folder = Path(found["path"])
    assert {"law.json", "points.csv", "law.png", "law.svg"} <= {p.name for p in folder.iterdir()}
    assert (folder / "law.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "law.svg").read_text()
    assert len((folder / "points.csv").read_text().splitlines()) == 10
    again = result(capsys, "--points", str(path))
    assert (again["digest"], again["made"], found["made"]) == (found["digest"], False, True)
    assert result(capsys, "--law", "runs")["digest"] == found["digest"]


def test_a_law_that_is_made_anew_has_the_same_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    first = result(capsys, "--points", str(path))
    assert result(capsys, "--points", str(path), "--fresh")["digest"] == first["digest"]


def test_it_predicts_and_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path)
    found = result(
        capsys, "--points", str(path), "--count-params", "non-embedding", "--predict", "7b",
        "--set", "pretrain.length=100T tokens", "--budget", "1e21", "--device", "h100",
        "--gpus", "8", "--price", "2/hour",
    )  # fmt: skip
    predicted = found["prediction"]
    assert predicted["loss"]["low"] < predicted["loss"]["value"] < predicted["loss"]["high"]
    assert predicted["reach"] > 100
    assert found["plan"]["cost"] == pytest.approx(found["plan"]["device_hours"] * 2)
    assert found["budget"]["shape"]["num_layers"] > 1
    assert [Path(picture).suffix for picture in found["pictures"]] == [".svg", ".png"]
    assert all(Path(picture).is_file() for picture in found["pictures"])


def test_quiet_prints_the_ref_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bc2("--points", str(table(tmp_path)), "--quiet") == 0
    out = capsys.readouterr().out.split()
    assert len(out) == 1
    assert len(out[0]) == 16


def test_people_see_units_and_conventions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bc2("--points", str(table(tmp_path)), "--count-params", "total") == 0
    out = capsys.readouterr().out
    for words in ("nats a token", "all parameters, embedding and head too", "FLOPs as 6ND",
                  "training tokens, not steps", "held out", "80% interval"):  # fmt: skip
        assert words in out


def test_optima_by_name_and_a_valley_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "optima.csv"
    path.write_text("flops,params_opt,tokens_opt\n1e18,1e8,1.67e9\n1e19,3e8,5.6e9\n1e20,1e9,2e10\n")
    found = result(capsys, "--points", str(path))
    assert found["form"] == "isoflop"
    assert found["a"]["value"] == pytest.approx(0.5, abs=0.01)
    sizes = np.geomspace(3e7, 1e9, 9)
    rows = ["params,flops,loss_nats"]
    for flops, best in ((1e18, 1e8), (1e19, 2.2e8), (1e20, 4.6e8)):
        loss = 3 + 0.05 * np.log(sizes / best) ** 2 - 0.1 * np.log10(flops)
        rows += [f"{n},{flops},{value}" for n, value in zip(sizes, loss, strict=True)]
    path.write_text("\n".join(rows))
    found = result(capsys, "--points", str(path), "--form", "isoflop")
    assert found["a"]["value"] == pytest.approx(1 / 3, abs=0.02)
    assert {"params_parabola", "params_parametric"} <= found["optima"][0].keys()
    assert bc2("--law", found["ref"], "--budget", "1e21") == 2
    assert "IsoFLOP law" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--predict", "7b"), "--count-params"),
        (("--predict", "8b"), "no such recipe"),
        (("--predict", "7b", "--set", "pretrain.length=2 epochs"), "no number of tokens"),
        (("--predict", "7b", "--device", "h200x"), "h200x"),
        (("--predict", "7b", "--device", "h100", "--gpus", "0"), "--gpus 0"),
        (("--form", "kaplan", "--budget", "1e21"), "how a budget"),
        (("--form", "isoflop", "--budget", "1e21"), "IsoFLOP law"),
        (("--budget", "nan"), "no number of FLOPs"),
        (("--budget", "1e21", "--vocab-size", "0"), "--vocab-size 0"),
    ],
)
def test_a_question_without_an_answer_is_refused_before_the_fit(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A fit may take long, and a law that was not wanted is not left in the registry."""

    def fits(*_: object) -> None:
        pytest.fail("a law was fitted")

    monkeypatch.setattr("bc2.scaling.law.write", fits)
    monkeypatch.setattr("bc2.scaling.isoflop_law.write", fits)
    assert bc2("--points", str(table(tmp_path)), *args) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert Registry.open().list("law") == []


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 4, "bc2 ladder recipes/ladder-cpu.toml"),
        (("--runs", "nothing"), 4, "nothing"),
        (("--points", "none.csv"), 3, "no such file"),
        (("--points", "runs.csv", "--runs", "x"), 2, "exclude each other"),
        (("--law", "x", "--points", "runs.csv"), 2, "excludes"),
        (("--where", "params > 1"), 2, "give --points"),
        (("--points", "runs.csv", "--form", "chinchila"), 2, "did you mean 'chinchilla'"),
        (("--points", "runs.csv", "--loss-unit", "nat"), 2, "did you mean 'nats'"),
        (("--points", "runs.csv", "--count-params", "all"), 2, "non-embedding or total"),
        (("--points", "runs.csv", "--level", "80"), 2, "no share"),
        (("--points", "runs.csv", "--replicates", "3"), 2, "too few"),
        (("--points", "runs.csv", "--huber", "0"), 2, "not above 0"),
        (("--points", "runs.csv", "--where", "params < 3e7"), 3, "do not determine the law"),
        (("--points", "runs.csv", "--predict", "7b"), 2, "--count-params"),
        (("--points", "runs.csv", "--predict", "8b"), 2, "no such recipe"),
        (("--points", "runs.csv", "--form", "power", "--budget", "1e21"), 2, "how a budget"),
        (("--points", "runs.csv", "--budget", "1e9"), 2, "no shape"),
        (("--law", "x", "--form", "power"), 2, "excludes what a new law is fitted with"),
        (("--law", "x", "--level", "0.8"), 2, "excludes what a new law is fitted with"),
        (("--points", "runs.csv", "--mix"), 2, "--mix is about runs"),
        (("--points", "runs.csv", "--huber", "inf"), 2, "not above 0 and finite"),
        (("--points", "runs.csv", "--device", "h100"), 2, "--device is about a prediction"),
        (("--points", "runs.csv", "--set", "a.b=1"), 2, "--set is about a prediction"),
        (("--points", "runs.csv", "--predict", "7b", "--gpus", "8"), 2, "--gpus is about a device"),
        (("--points", "runs.csv", "--vocab-size", "512"), 2, "--vocab-size is about a budget"),
    ],
)
def test_wrong_input_has_one_clear_message(
    args: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert bc2(*args) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert captured.err.count("error:") == 1


def test_the_newest_ladder_becomes_a_law(
    ladder_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real ladder of three sizes and a repeat, fitted as typed; its parents are the runs."""
    monkeypatch.setattr("bc2.report.curves.draw_run", lambda run: None)
    with pytest.raises(SystemExit) as ended:
        main(["ladder", "micro.toml", "--seeds", "2", "--json"])
    assert not ended.value.code
    members = json.loads(capsys.readouterr().out)["members"]
    found = result(capsys, "--form", "kaplan-n", "--predict", "micro.toml")
    registry = Registry.open()
    law = registry.resolve(found["ref"], "law")
    assert law.name == "micro"
    assert sorted(law.parents) == sorted(member["digest"] for member in members)
    assert found["settings"]["seed_noise"] > 0
    assert found["conventions"] == {"loss": "nats", "params": "non-embedding", "flops": "6ND"}
    # A ladder's recipe stands for its extrapolation, which was not trained.
    assert found["prediction"]["target"] == "micro-82.2k"
    assert found["prediction"]["measured"] is None
    by_name = dict(zip(found["settings"]["names"], found["settings"]["loss"], strict=True))
    assert by_name == {member["name"]: member["heldout_loss"] for member in members}

    member = members[-1]
    again = [word for one in member["overrides"] for word in ("--set", one)]
    known = result(capsys, "--law", "micro", "--predict", "small.toml", *again)["prediction"]
    assert known["target"] == member["name"]
    assert known["measured"] == member["heldout_loss"]
    assert known["miss"] == pytest.approx(known["measured"] / known["loss"]["value"] - 1)
    assert known["inside"] == (known["loss"]["low"] <= known["measured"] <= known["loss"]["high"])
