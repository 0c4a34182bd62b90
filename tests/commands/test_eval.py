"""`bc2 eval` without a network on a few made rows of every benchmark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import made_releases
import pytest

from bc2.errors import RunFailed
from bc2.evaluate.model_holder import ModelHolder
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Continuation, Generated, Request
from bc2.harness.suites import SUITES
from bc2.registry import Registry
from bc2.sandbox.run import Sandbox

pytestmark = pytest.mark.usefixtures("offline")

Bc2 = Callable[..., Any]

#: Samples of the made rows that are scored, by suite.
CHOICES = {
    "mmlu": 114, "cmmlu": 134, "ceval": 104, "agieval": 56, "gaokao": 18, "jecqa": 8, "medqa": 5,
    "medmcqa": 5,
}  # fmt: skip

#: The real releases, where they are.
REAL = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute() / "bench"

REAL_SUBJECTS = {
    "mmlu": 57, "cmmlu": 67, "ceval": 52, "agieval": 14, "gaokao": 9, "jecqa": 2, "bbh": 27,
}  # fmt: skip


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be loaded."""

    def refuse(self: ModelHolder) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelHolder, "model", property(refuse))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], str]], None]:
    """Sets what is generated, given the place of a sample (``gsm8k:3``) and its answer's number."""

    def answer_with(write: Callable[[str, int], str]) -> None:
        def generate(self: Any, requests: Iterable[Request], **_: Any) -> Iterator[Generated]:
            for index, request in enumerate(requests):
                texts = [write(request.where, number) for number in range(request.settings.n)]
                made = [Continuation([1], "stop_id", data=text.encode()) for text in texts]
                yield Generated(index, request, made, 0)

        monkeypatch.setattr(InferenceEngine, "generate", generate)

    return answer_with


def scores(done: Any) -> dict[str, Any]:
    """By suite, the summary of the whole."""
    return {one["suite"]: one["summaries"][0] for one in done.json["scores"]}


# -- every suite ---------------------------------------------------------------------------


def test_every_suite_of_the_list_is_tested_here(bc2: Bc2) -> None:
    listed = [suite["name"] for suite in bc2("eval", "--list", "--json").json]
    assert set(listed) == {*CHOICES, "gsm8k", "bbh", "humaneval", "mbpp", "text"}
    assert bc2("eval", "--list", "--quiet").out.split() == listed


def test_suites_of_choices(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "tiny", "--bench", ",".join(CHOICES), "--data", bench_data, "--json")
    found = scores(done)
    assert {suite: one["samples"] for suite, one in found.items()} == CHOICES
    assert list(found) == list(CHOICES)
    for name, one in found.items():
        assert 0 <= one["score"] <= 1
        assert (one["shots"], one["metric"]) == (5, "acc,none")
        assert one["chance"] == (0.2 if name == "medqa" else 0.25)
        assert one["cut"] == one["at_limit"] == 0
        assert f"{name}: another number of rows than" in done.err
    assert found["cmmlu"]["clusters"] == 67
    # A model of drawn weights does not always take the same letter.
    assert 0 < found["mmlu"]["score"] < 1


def test_gsm8k_by_a_model_that_answers(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "says-7", "--bench", "gsm8k", "--data", bench_data, "--json")
    found = scores(done)["gsm8k"]
    assert (found["samples"], found["score"], found["shots"]) == (10, 0.0, 4)
    assert found["not_extracted"]["strict-match"] == 0


def test_bbh_by_a_model_that_answers(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "says-a", "--bench", "bbh", "--data", bench_data, "--limit", 1, "--json")
    found = scores(done)["bbh"]
    right = [made_releases.made((300 + index) * 11).letter for index in range(27)].count("A")
    assert (found["samples"], found["shots"]) == (27, 3)
    assert found["score"] == pytest.approx(right / 27)


@pytest.mark.parametrize("suite", ["gsm8k", "bbh"])
def test_no_answer_found_in_any_is_no_score(
    bc2: Bc2, bench_data: Path, answers: Any, suite: str
) -> None:
    answers(lambda where, number: "no idea")
    done = bc2("eval", "other", "--bench", suite, "--data", bench_data, "--limit", 1)
    assert done.code == 1
    assert "found an answer in none" in done.err
    assert "'no idea'" in done.err
    assert done.out == ""
    assert not Registry.open().list("scores", name=f"other-{suite}")


def test_a_suite_without_score_does_not_keep_others_from_theirs(
    bc2: Bc2, bench_data: Path, answers: Any
) -> None:
    answers(lambda where, number: "no idea")
    benches = ("--bench", "gsm8k,medqa", "--data", bench_data)
    done = bc2("eval", "other", *benches, "--quiet")
    assert done.code == 1
    assert "found an answer in none" in done.err
    (ref,) = done.out.split()
    assert Registry.open().resolve(ref).name == "other-medqa"


# -- programs ------------------------------------------------------------------------------


@pytest.fixture
def sandboxed() -> None:
    """Skips where no sandbox can be made."""
    try:
        Sandbox.open().close()
    except RunFailed as error:
        pytest.skip(str(error))


def solution(where: str, number: int) -> str:
    """The right program for a made row, as first answer; then a wrong one."""
    task, _, row = where.partition(":")
    if task == "bc2_humaneval":
        return f"    return x + {row}\n" if number == 0 else "    return x - 1\n"
    return f"def times_{int(row) + 11}(x):\n  return x * {int(row) + 11 + number}\n"


def test_right_programs_pass(bc2: Bc2, bench_data: Path, answers: Any, sandboxed: None) -> None:
    answers(solution)
    done = bc2(
        "eval", "other", "--bench", "humaneval,mbpp", "--data", bench_data, "--allow-code", "--json"
    )
    found = scores(done)
    assert {name: (one["samples"], one["score"]) for name, one in found.items()} == {
        "humaneval": (10, 1.0),
        "mbpp": (10, 1.0),
    }


def test_pass_at_k(bc2: Bc2, bench_data: Path, answers: Any, sandboxed: None) -> None:
    answers(solution)
    options = ("--samples", 10, "--temperature", 0.8, "--limit", 2, "--allow-code")
    done = bc2("eval", "other", "--bench", "humaneval", "--data", bench_data, *options, "--json")
    found = scores(done)["humaneval"]
    assert found["score"] == pytest.approx(0.1)
    assert found["others"]["pass@10,create_test"] == 1.0


@pytest.mark.parametrize("suite", ["humaneval", "mbpp", "gsm8k,mbpp"])
def test_programs_are_refused_before_anything_is_done(bc2: Bc2, no_model: None, suite: str) -> None:
    done = bc2("eval", "--bench", suite, "--data", "nowhere")
    assert done.code == 2
    assert "allow it with --allow-code" in done.err


# -- the same again ------------------------------------------------------------------------


def test_registered_scores_are_found_without_a_model(
    bc2: Bc2, bench_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval", "tiny", "--bench", "medqa,gaokao", "--data", bench_data, "--json")
    first = bc2(*command)
    monkeypatch.setattr(ModelHolder, "model", property(lambda self: pytest.fail("loaded")))
    again = bc2(*command)
    found = {"made": False, "model_seconds": None}
    assert again.json["scores"] == [{**one, **found} for one in first.json["scores"]]
    assert again.err.count("is registered already") == 2


def test_fresh_makes_them_again(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medmcqa", "--data", bench_data, "--json")
    (first,), (again,) = bc2(*command).json["scores"], bc2(*command, "--fresh").json["scores"]
    assert again["made"]
    assert again["summaries"] == first["summaries"]


def test_changed_rows_are_evaluated_anew_and_said(bc2: Bc2, tmp_path: Path) -> None:
    made_releases.write_releases(tmp_path / "data", ["medqa"])
    command = ("eval", "tiny", "--bench", "medqa", "--limit", 4, "--data", tmp_path / "data")
    (first,) = bc2(*command, "--json").json["scores"]
    path = tmp_path / "data/medagents/data/medqa_5options/test.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:-1], rows[-1].replace("Mira", "Lena")]) + "\n")
    done = bc2(*command, "--json")
    (again,) = done.json["scores"]
    assert again["made"]
    assert again["ref"] != first["ref"]
    assert f"the rows of medqa are not those of scores/tiny-medqa ({first['ref']})" in done.err


def test_a_second_checkpoint_takes_the_stored_prompts(
    bc2: Bc2, bench_data: Path, bench_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("--bench", "jecqa", "--data", bench_data, "--quiet")
    assert bc2("eval", "tiny", *command).code == 0
    kept = sorted(bench_cache.glob("prompts/*/*.parquet"))
    assert kept

    def refuse(*_: Any) -> None:
        raise AssertionError("prompts were built again")

    monkeypatch.setattr("bc2.evaluate.prompt_builder.build_prompts", refuse)
    assert bc2("eval", "other", *command).code == 0
    assert sorted(bench_cache.glob("prompts/*/*.parquet")) == kept


def test_damaged_prompts_are_built_again_or_named(
    bc2: Bc2, bench_data: Path, tmp_path: Path, bench_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "lm-eval").symlink_to(bench_cache / "lm-eval")
    command = ("eval", "tiny", "--bench", "medqa", "--data", bench_data, "--quiet", "--fresh")
    first = bc2(*command)
    assert first.code == 0
    (path,) = (tmp_path / "cache").glob("prompts/*/*.parquet")
    right = path.read_bytes()
    for damage in (b"", right[: len(right) // 2], b"PAR1"):
        path.write_bytes(damage)
        assert bc2(*command).out == first.out
        assert path.read_bytes() == right
    path.write_bytes(right[:300] + bytes([right[300] ^ 255]) + right[301:])
    done = bc2(*command)
    assert done.code == 3
    assert "stored prompts are damaged" in done.err
    assert str(path) in done.err
    assert "delete the file" in done.err


STARTS_TO_SCORE = """
import sys
from bc2.evaluate.answering import Answerer

def score(self, prompts, file):
    assert "lm_eval" not in sys.modules, "lm-eval was imported before anything was scored"
    assert len(file.read(0, prompts.samples)) == prompts.samples
    print("ready")
    sys.exit(0)

Answerer.score = score
from bc2.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_second_checkpoint_scores_before_lm_eval_is_imported(bc2: Bc2, bench_data: Path) -> None:
    command = ("--bench", "medmcqa", "--data", bench_data)
    assert bc2("eval", "tiny", *command, "--quiet").code == 0
    words = [*map(str, ("eval", "other", *command))]
    run = subprocess.run(
        [sys.executable, "-P", "-c", STARTS_TO_SCORE, *words], capture_output=True, text=True
    )
    assert run.stdout == "ready\n", run.stderr


# -- the record ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "samples", "shots"),
    [("cmmlu_anatomy", 2, 0), ("mmlu_stem", 38, 0), ("gsm8k_cot", 10, 8)],
)
def test_a_task_of_lm_eval_on_the_rows_of_a_suite(
    bc2: Bc2, bench_data: Path, answers: Any, task: str, samples: int, shots: int
) -> None:
    answers(lambda where, number: "The answer is 7.\n#### 7")
    done = bc2("eval", "other", "--bench", task, "--data", bench_data, "--json")
    found = scores(done)[task]
    assert (found["samples"], found["shots"]) == (samples, shots)


@pytest.mark.parametrize("name", ["mmlu_generative", "blimp_nl", "openllm", "bbh_zeroshot"])
def test_groups_of_lm_eval_are_evaluated_or_refused(
    bc2: Bc2, bench_data: Path, answers: Any, name: str
) -> None:
    """Groups in groups, and such whose rows are on the hub alone."""
    answers(lambda where, number: "(A)")
    done = bc2("eval", "other", "--bench", name, "--data", bench_data, "--limit", 1)
    assert done.code in (0, 1, 3)
    assert "defect" not in done.err


def test_shots_limit_and_seed_are_settings(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa", "--data", bench_data, "--json")
    known = bc2(*command).json["scores"][0]["ref"]
    for options in (("--shots", 0), ("--limit", 2), ("--seed", 5)):
        (one,) = bc2(*command, *options).json["scores"]
        assert one["ref"] != known
    (one,) = bc2(*command, "--shots", 5).json["scores"]
    assert one["ref"] == known


def test_a_user_without_a_home_directory(
    bc2: Bc2, bench_data: Path, eval_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("BC2_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    done = bc2("eval", "tiny", "--bench", "medqa", "--limit", 3, "--data", bench_data, "--quiet")
    assert done.code == 0, done.err
    assert list((eval_home / "cache" / "prompts").glob("*/*.parquet"))


def test_progress_with_the_time_left(
    bc2: Bc2, bench_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from bc2 import console
    from bc2.evaluate.answering import Answerer

    true = Answerer._scored

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)
        return true(*given)

    monkeypatch.setattr(Answerer, "_scored", slowly)
    monkeypatch.setattr(console._lines, "__defaults__", (0.0,))
    done = bc2("eval", "tiny", "--bench", "gaokao", "--data", bench_data, "--seed", 3)
    assert done.code == 0
    lines = re.findall(r"^gaokao: (\d+)/18 samples ?(0:00:0\d left)?$", done.err, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(2, 19, 2))
    # Nothing is said in the first second.
    assert any(left for _, left in lines)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/bench")
@pytest.mark.parametrize("suite", [*SUITES])
def test_every_suite_on_its_real_files(bc2: Bc2, answers: Any, suite: str) -> None:
    answers(lambda where, number: "So the answer is (A).\n#### 7")
    command = ("eval", "other", "--bench", suite, "--data", REAL, "--limit", 1, "--allow-code")
    found = scores(bc2(*command, "--json"))[suite]
    assert found["samples"] == REAL_SUBJECTS.get(suite, 1)
    assert 0 <= found["score"] <= 1
