"""`bc2 eval` with wrong inputs: one clear message each, the right exit code, nothing registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import made_releases
import pytest
import torch

from bc2.evaluate.model_holder import ModelHolder
from bc2.registry import Registry

pytestmark = pytest.mark.usefixtures("offline")

Bc2 = Callable[..., Any]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be loaded."""

    def refuse(self: ModelHolder) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelHolder, "model", property(refuse))


def refused(done: Any, code: int, *said: str) -> None:
    """One message: what is wrong, and what to do."""
    assert done.code == code, done.err
    for part in said:
        assert part in done.err
    assert done.err.count("error: ") == 1
    assert done.out == ""


# -- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ("--bench cmmul", 2, "did you mean 'cmmlu'?"),
        ("--bench mmlu_anatmy", 2, "did you mean 'mmlu_anatomy'?"),
        ("--bench zzzzqqqq", 2, "bc2 eval --list"),
        ("--bench medqa,cmmul", 2, "did you mean 'cmmlu'?"),
        ("--bench ,", 2, "no benchmark is named"),
        ("tiny", 2, "no benchmark is named"),
        ("--bench medqa --out scores.txt", 2, "--out ends in .txt"),
        ("--bench medqa --out scores", 2, "--out ends in nothing"),
        ("--bench medqa --out none/scores.json", 2, "no such directory"),
        (f"--bench medqa --out {'x' * 253}.md", 2, "--out cannot be written: file name too long"),
        ("--bench medqa --require medqa:accc=0.1", 2, "no metric accc"),
        ("--bench gsm8k --require gsm8k:exact_match=0.1", 2, "exact_match has several filters"),
        ("--bench humaneval --allow-code --require humaneval:pass@10=0.1", 2, "no metric pass@10"),
        ("--bench medqa --data none", 3, "no such folder"),
        ("--bench medqa --device tpu", 2, "tpu"),
        ("--bench medqa --precision fp8", 2, "fp8"),
        ("--bench medqa --cache-memory much", 2, "--cache-memory cannot read 'much'"),
        ("--bench gsm8k --temperature inf", 2, "--temperature inf is no temperature"),
        ("nosuch --bench medqa", 4, "nosuch"),
    ],
)
def test_wrong_options(
    bc2: Bc2, bench_data: Path, no_model: None, args: str, code: int, said: str
) -> None:
    words = args.split()
    folder = () if "--data" in words else ("--data", bench_data)
    refused(bc2("eval", *words, *folder), code, said)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--limit", 0), ("--limit", -1), ("--nproc", 0), ("--shots", -1), ("--samples", 0),
        ("--temperature", -1), ("--stride", 0), ("--seed", -1),
    ],
)  # fmt: skip
def test_numbers_out_of_range(bc2: Bc2, no_model: None, option: str, value: int) -> None:
    done = bc2("eval", "tiny", "--bench", "medqa", option, value)
    assert done.code == 2
    assert f"Invalid value for '{option}'" in done.err
    assert "should be greater than or equal to" in done.err


def test_data_that_is_a_file(bc2: Bc2, bench_data: Path, no_model: None) -> None:
    file = bench_data / "gsm8k" / "test.jsonl"
    done = bc2("eval", "tiny", "--bench", "gsm8k", "--data", file)
    refused(done, 3, "this is a file, not a folder", str(file))


def test_out_that_is_a_folder(bc2: Bc2, bench_data: Path, no_model: None) -> None:
    Path("scores.json").mkdir()
    command = ("eval", "tiny", "--bench", "medqa", "--data", bench_data)
    refused(bc2(*command, "--out", "scores.json"), 2, "--out is a directory")


def test_shots_for_a_task_that_has_none(bc2: Bc2, bench_data: Path, no_model: None) -> None:
    command = ("eval", "tiny", "--bench", "humaneval", "--allow-code", "--data", bench_data)
    refused(bc2(*command, "--shots", 2), 2, "without shots, 2 were asked for", "--shots")


# -- checkpoints ---------------------------------------------------------------------------


def test_a_home_without_a_model(bc2: Bc2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "empty"))
    done = bc2("eval", "--bench", "cmmlu")
    refused(done, 4, "bc2 pretrain recipes/tiny.toml", "bc2 registry import")


def test_a_reward_model(
    bc2: Bc2, bench_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    made_checkpoints.register(tmp_path / "home", "judge", role="reward")
    command = ("--bench", "medqa", "--data", bench_data)
    refused(
        bc2("eval", "judge", *command), 4,
        "of role reward, and one of role base, chat, adapter or merged is needed",
    )  # fmt: skip
    assert bc2("eval", *command).code == 4


def test_scores_in_place_of_a_checkpoint(bc2: Bc2, bench_data: Path) -> None:
    command = ("--bench", "medqa", "--data", bench_data, "--quiet")
    ref = bc2("eval", "tiny", *command).out.strip()
    for name in ("scores/tiny-medqa", ref):
        refused(bc2("eval", name, *command), 4, "is a scores, and a checkpoint is needed")


def test_scores_of_a_deleted_checkpoint(bc2: Bc2, bench_data: Path, eval_home: Path) -> None:
    made_checkpoints.register(eval_home, "gone", made_checkpoints.drawn(9))
    command = ("eval", "gone", "--bench", "medqa", "--data", bench_data)
    ref = bc2(*command, "--quiet").out.strip()
    # The registry keeps what something was made from ...
    kept = bc2("registry", "gc", "checkpoint/gone", "--yes")
    assert Registry.open().resolve("checkpoint/gone")
    assert "checkpoint/gone" in kept.err
    # ... but a folder may be lost.
    shutil.rmtree(Registry.open().resolve("checkpoint/gone").path)
    assert bc2("registry", "rebuild").code == 0
    refused(bc2(*command), 4, "gone")
    assert ref in bc2("registry", "list", "--kind", "scores").out
    lineage = bc2("registry", "lineage", ref)
    assert lineage.code == 0
    assert "scores/gone-medqa" in lineage.out


def test_a_tokenizer_of_another_model(bc2: Bc2, bench_data: Path, tmp_path: Path) -> None:
    larger = made_checkpoints.tokenizer_bytes(made_checkpoints.VOCABULARY + 40)
    own = Registry.open().resolve("checkpoint/tiny").path
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(own / name, folder)
    (folder / "tokenizer.model").write_bytes(larger)
    assert bc2("registry", "import", folder, "--kind", "checkpoint", "--name", "mixed").code == 0
    done = bc2("eval", "mixed", "--bench", "medqa", "--data", bench_data)
    refused(
        done, 3, "the tokenizer of checkpoint/mixed has 680 pieces and its model 640 tokens",
        "import the checkpoint again",
    )  # fmt: skip


def test_a_checkpoint_without_a_tokenizer(bc2: Bc2, bench_data: Path, tmp_path: Path) -> None:
    own = Registry.open().resolve("checkpoint/tiny").path
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(own / name, folder)
    assert bc2("registry", "import", folder, "--kind", "checkpoint", "--name", "bare").code == 0
    done = bc2("eval", "bare", "--bench", "medqa", "--data", bench_data)
    refused(done, 3, "checkpoint/bare holds no tokenizer.model")


def test_a_window_that_holds_no_question(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "short", "--bench", "medqa", "--data", bench_data)
    refused(
        done, 3, "the model's window of 32 tokens holds no question of medqa: the shortest has",
        "take a model with a longer context",
    )  # fmt: skip
    assert not Registry.open().list("scores", name="short-medqa")


def test_a_window_that_holds_no_question_beside_its_answer(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "short", "--bench", "gsm8k", "--data", bench_data)
    refused(done, 3, "of 32 tokens holds no question of gsm8k beside the answer")
    assert "gsm8k would generate 256 tokens; the window of 32 leaves 16" in done.err


@pytest.mark.parametrize(("suite", "sample"), [("medqa", "bc2_medqa:0"), ("gsm8k", "gsm8k:0")])
def test_a_sample_that_fails_is_named(
    bc2: Bc2, bench_data: Path, eval_home: Path, suite: str, sample: str
) -> None:
    broken = made_checkpoints.drawn()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    made_checkpoints.register(eval_home, f"broken-{suite}", broken)
    done = bc2("eval", f"broken-{suite}", "--bench", suite, "--data", bench_data)
    refused(done, 1, "the model's logits are not numbers", f"where: {sample}")


# -- data ----------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the made release of a source into an own folder for ``--data``."""

    def write(source: str) -> Path:
        folder = tmp_path / "data"
        made_releases.write_releases(folder, [source])
        return folder

    return write


def test_no_hub_and_no_data(bc2: Bc2, no_model: None) -> None:
    done = bc2("eval", "tiny", "--bench", "cmmlu")
    refused(
        done, 3, "CMMLU", "https://huggingface.co/datasets/haonan-li/cmmlu", "cmmlu_v1_0_1.zip",
        "--data DIR", "BC2_BENCH_DATA",
    )  # fmt: skip


def test_a_task_of_lm_eval_without_a_hub(bc2: Bc2, no_model: None) -> None:
    done = bc2("eval", "tiny", "--bench", "arc_easy")
    refused(done, 3, "arc_easy", "network")


def test_a_folder_without_the_benchmark(
    bc2: Bc2, release: Callable[[str], Path], no_model: None
) -> None:
    folder = release("medqa")
    done = bc2("eval", "tiny", "--bench", "mmlu", "--data", folder)
    refused(done, 3, "no files of MMLU below this folder", str(folder))


def test_all_files_are_looked_for_before_a_model_answers(
    bc2: Bc2, release: Callable[[str], Path], no_model: None
) -> None:
    done = bc2("eval", "tiny", "--bench", "medqa,mmlu", "--data", release("medqa"))
    refused(done, 3, "no files of MMLU below this folder")


def test_a_file_of_another_format(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("mmlu")
    path = folder / "mmlu/data/test/anatomy_test.csv"
    path.write_bytes(b"PAR1\\x00\\x93\\x15\\x04")
    refused(bc2("eval", "tiny", "--bench", "mmlu", "--data", folder), 3, str(path))


def test_a_shuffled_header(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("mmlu")
    path = folder / "mmlu/data/test/anatomy_test.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["choice0,question,choice1,choice2,choice3,answer", *lines[1:]]))
    done = bc2("eval", "tiny", "--bench", "mmlu", "--data", folder)
    refused(done, 3, "the columns are not this benchmark's", str(path), "it must begin with")


def test_a_label_out_of_range(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("mmlu")
    path = folder / "mmlu/data/test/anatomy_test.csv"
    path.write_text("\n".join(line[:-1] + "4" for line in path.read_text().splitlines()[1:]))
    header = "question,choice0,choice1,choice2,choice3,answer\n"
    path.write_text(header + path.read_text())
    refused(bc2("eval", "tiny", "--bench", "mmlu", "--data", folder), 3, f"{path}:1", "4")


def test_an_empty_subset(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("mmlu")
    path = folder / "mmlu/data/test/anatomy_test.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    done = bc2("eval", "tiny", "--bench", "mmlu", "--data", folder)
    refused(done, 3, "anatomy", "no rows")


def test_an_empty_file(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("medqa")
    (folder / "medagents/data/medqa_5options/test.jsonl").write_bytes(b"")
    done = bc2("eval", "tiny", "--bench", "medqa", "--data", folder)
    refused(done, 3, "medqa")


def test_fewer_shots_than_asked(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "tiny", "--bench", "mmlu", "--data", bench_data, "--shots", 9)
    refused(done, 3, "has 5 rows for shots, 9 were asked for", "ask for fewer with --shots")


def test_a_damaged_archive(bc2: Bc2, release: Callable[[str], Path], no_model: None) -> None:
    folder = release("cmmlu")
    path = folder / "cmmlu/cmmlu_v1_0_1.zip"
    path.write_bytes(path.read_bytes()[:2000])
    refused(bc2("eval", "tiny", "--bench", "cmmlu", "--data", folder), 3, str(path), "damaged")


def test_one_bad_suite_does_not_keep_others_from_their_scores(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa,bbh", "--data", bench_data)
    done = bc2(*command, "--shots", 5, "--quiet")
    assert done.code == 3
    assert "were asked for" in done.err
    assert len(done.out.split()) == 1


def test_nothing_half_made_is_left(eval_home: Path, bc2: Bc2) -> None:
    """After all of the above."""
    assert bc2("registry", "verify").code == 0
    assert list((eval_home / "staging").glob("*")) == []
