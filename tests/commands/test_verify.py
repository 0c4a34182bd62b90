"""`bc2 verify resume` from the command line: what it proves, keeps and finds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warmed

from bc2.cli import main
from bc2.errors import ResourceError
from bc2.plan import check
from bc2.recipe import load
from bc2.registry import Registry
from bc2.train.rank_layout import recipe_layout
from bc2.train.training_settings import TrainingSettings
from bc2.verify import resume
from bc2.verify.certificate import Certificate
from bc2.verify.compare import Comparison
from bc2.verify.other_layouts import check_fits, other_layouts


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bc2", "verify", "resume", "small.toml", *arguments]
    return warmed.run(
        command, children=True, capture_output=True, text=True, cwd=folder, check=False
    )


def contents(home: Path) -> dict[str, str]:
    """Every file below a home but the index, with its digest."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.rglob("*")
        if path.is_file() and not path.name.startswith("index.sqlite")
    }


def test_one_rank_against_kills_and_two(small: Path) -> None:
    """Table and certificate; the home is as it was before, but for the certificate."""
    before = contents(small / "home")
    (small / "here").mkdir()
    options = ["--steps", "8", "--kills", "2", "--ranks", "2", "--json", "--out", "here/it.json"]
    run = verify(small, *options)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["holds"] is True
    assert answer["first_difference"] is None
    killed, two, back = answer["comparisons"]
    assert killed["by"] == "bits"
    assert 1 <= len(killed["figures"]["kills"]) <= 2
    assert killed["figures"]["digest"] == killed["figures"]["digest_of_other"]
    assert killed["figures"]["samples"] == 8 * 8
    assert (two["on"], back["on"]) == ("2 ranks", "1 rank")
    assert (two["figures"]["since_step"], back["figures"]["since_step"]) == (2, 4)
    for one in (two, back):
        assert one["by"] == "1e-05 relative"
        assert one["same"] is True
        assert one["figures"]["samples"] == 64
        assert one["figures"]["largest_relative"] < 1e-5
        assert one["figures"]["weights_relative"] < 1e-4
    kept = json.loads((small / "here" / "it.json").read_text())
    assert kept["comparisons"] == answer["comparisons"]
    assert kept["run"]["precision"] == "fp32"
    assert kept["layout"]["ranks"] == 1
    assert kept["algorithm"] == "pretrain"
    assert kept["environment"]["packages"]["torch"]
    assert str(small) not in (small / "here" / "it.json").read_text()
    assert answer["ref"] is None
    assert contents(small / "home") == before
    assert not list((small / "home" / "staging").glob("*"))


@pytest.mark.slow
def test_two_ranks_and_a_finished_model(small: Path) -> None:
    """The certificate is a child of the recipe's finished checkpoint."""
    trained = [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", "--quiet"]
    ref = subprocess.run(trained, capture_output=True, text=True, cwd=small, check=True)
    run = verify(
        small, "--nproc", "2", "--set", "parallel.zero=1", "--ranks", "1",
        "--layout", "4:tensor=2,zero=0", "--quiet",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    registry = Registry.open(small / "home")
    artifact = registry.resolve(run.stdout.split()[-1], "certificate")
    (parent,) = registry.parents(artifact)
    assert parent.ref == ref.stdout.split()[-1]
    answer = json.loads(artifact.file("certificate.json").read_text())
    ons = [one["on"] for one in answer["comparisons"]]
    assert ons == ["2 ranks, zero 1", "4 ranks, tensor 2", "1 rank, zero 1", "2 ranks, zero 1"]
    assert json.loads((small / "home" / "verify" / "resume-small.json").read_text()) == answer


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--ranks", "two"], "--ranks 'two' is no number of ranks"),
        (["--ranks", "3"], "a step of 8 sequences"),
        (["--layout", "2:tensor"], "cannot read 'tensor'"),
        (["--layout", "3:tensor=3"], "parallel.tensor = 3 does not divide model.num_heads = 2"),
        (["--layout", "2:zero=2,zero_group=2"], "zero_group needs zero = 3"),
        (["--out", "none/it.json"], "no such directory for --out"),
        (["--steps", "4", "--ranks", "1,2,2,2,2"], "--steps 4 is too few"),
        (["--set", "parallel.tensor=2", "--nproc", "3"], "3 ranks cannot be parted"),
    ],
)
def test_wrong_usage(
    small: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    before = contents(small / "home")
    with pytest.raises(SystemExit) as left:
        main(["verify", "resume", "small.toml", *arguments])
    assert left.value.code == 2
    assert what in capsys.readouterr().err
    assert contents(small / "home") == before


HUGE = [
    f"--set=model.{key}={value}"
    for key, value in {
        "hidden_size": 65536, "intermediate_size": 131072, "num_layers": 96, "num_heads": 64
    }.items()
]  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--ranks", "2"], ["--set=pretrain.micro_batch='auto'"]])
def test_a_model_that_cannot_fit_is_refused_before_its_corpus_is_made(
    small: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    before = contents(small / "home")
    with pytest.raises(SystemExit) as left:
        main(["verify", "resume", "small.toml", "--set=corpus.part_bytes=99999", *HUGE, *arguments])
    said = capsys.readouterr().err
    assert left.value.code == 6, said
    assert "GB" in said
    assert contents(small / "home") == before


def test_a_layout_that_cannot_fit_is_refused_if_asked_for_and_else_not_taken(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings.of(load("small.toml"))
    base = recipe_layout(settings, 1)
    # A rank takes some 6 MB, or 4 MB if there are four.
    monkeypatch.setattr(check, "device_available", lambda device: 7_000_000)
    check_fits(settings, base)
    with pytest.raises(ResourceError, match="is free"):
        other_layouts(settings, base, "2", None)
    assert other_layouts(settings, base, None, None) == []
    monkeypatch.setattr(check, "device_available", lambda device: 28_000_000)
    assert [str(one) for one in other_layouts(settings, base, "2", None)] == ["2 ranks"]


def test_a_run_that_fails_says_why(small: Path) -> None:
    """As `bc2 pretrain` says it, with its exit code."""
    run = verify(small, "--set", "pretrain.max_epochs=0.00001", "--ranks", "1")
    assert run.returncode == 2, run.stderr
    assert "pretrain.max_epochs is 1e-05" in run.stderr
    assert run.stderr.count("error:") == 1
    assert not list((small / "home" / "staging").glob("*"))


def test_it_is_not_a_rank(small: Path) -> None:
    run = warmed.run(
        [sys.executable, "-P", "-m", "bc2", "verify", "resume", "small.toml"],
        capture_output=True, text=True, cwd=small, check=False,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
    )  # fmt: skip
    assert run.returncode == 2
    assert "start it by hand, with --nproc" in run.stderr


def test_a_difference_is_said_kept_and_fails(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are left out: of three comparisons the last two differ."""
    asked = []
    digest = {"samples": 8, "rows": 4, "files": 3, "bytes": 10, "digest": "c" * 64}

    def differ(request: resume.ResumeRequest, registry: Registry) -> Certificate:
        asked.append(request)
        same = Comparison("killed once", "1 rank", "bits", None, digest)
        one = Comparison("changed", "2 ranks", "1e-5", "step 3: loss is 2.0 and 2.5")
        two = Comparison("changed back", "1 rank", "1e-5", "step 9: loss is 1.0 and 1.5")
        return Certificate.now({"about": "small"}, [same, one, two])

    monkeypatch.setattr(resume, "verify_resume", differ)
    with pytest.raises(SystemExit) as left:
        main(["verify", "resume", "small.toml", "--kills", "1", "--ranks", "2"])
    assert left.value.code == 1
    assert [one.ranks for one in asked[0].others] == [2]
    out, err = capsys.readouterr()
    assert "DIFFERS" in out
    assert "step 3: loss is 2.0 and 2.5" in out
    assert "error: changed, on 2 ranks: step 3: loss is 2.0 and 2.5" in err
    kept = json.loads((small / "home" / "verify" / "resume-small.json").read_text())
    assert kept["holds"] is False
    assert kept["first_difference"] == "changed, on 2 ranks: step 3: loss is 2.0 and 2.5"
    assert Registry.open().list("certificate") == []
