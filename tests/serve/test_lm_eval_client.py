"""lm-eval's `local-completions` against a server: the answers of `bc2 eval`, sample by sample."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import made_checkpoints
import made_releases
import pytest
import warmed
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.utils import RemoteTokenizer
from lm_eval_peer.answers import Answers, answers_of
from lm_eval_peer.compare import compare
from lm_eval_peer.reference import AskedTask, index_of, load_tasks, run_tasks
from lm_eval_peer.rows import release_files
from served_process import Served, serve_process

REAL = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute()

KEY = "sk-made-for-tests"
WINDOW = 4096


def by_the_server(
    served: Served, model: str, task: AskedTask, data: Path, limit: int, **more: Any
) -> Answers:
    """lm-eval's own loop, tokenizer included: it finds the server's by itself."""
    lm = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model=model, max_length=WINDOW, auth_token=KEY,
        max_retries=1, **more,
    )  # fmt: skip
    assert isinstance(lm.tokenizer, RemoteTokenizer)
    assert isinstance(task.spec, str)
    tasks = load_tasks([task], index_of(task.spec), release_files(data))
    return answers_of(run_tasks(lm, tasks, limit))


def by_bc2_eval(home: Path, model: str, bench: str, data: Path, limit: int) -> Answers:
    """`bc2 eval`, by its files of samples."""
    command = [
        sys.executable, "-m", "bc2", "eval", model, "--bench", bench, "--data", str(data),
        "--limit", str(limit), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "BC2_HOME": str(home)}
    done = warmed.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads(done.stdout)["scores"]
    samples = {
        path.stem.removeprefix("samples_").removeprefix("bc2_"): [
            json.loads(line) for line in path.read_text("utf-8").splitlines()
        ]
        for path in sorted(Path(scores["path"], "samples").glob("*.jsonl"))
    }
    return answers_of(samples)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # lm-eval's client sends it as the key.
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return tmp_path / "home"


def serving(home: Path, *models: str) -> Any:
    options = ("--api-key-env", "MADE_KEY", "--cache-memory", "256MB")
    return serve_process(home, *models, *options, MADE_KEY=KEY)


def test_choices_and_texts_of_made_rows(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    made_releases.write_releases(data)
    with ZipFile(data / "cmmlu/cmmlu_v1_0_1.zip") as archive:
        archive.extractall(data / "cmmlu/data")
    made_checkpoints.register(home, "drawn", made_checkpoints.drawn(window=WINDOW))
    made_checkpoints.register(home, "says", made_checkpoints.saying("#### 7", window=WINDOW))
    choices, texts = AskedTask("cmmlu", 5), AskedTask("gsm8k", 8)
    with serving(home, "drawn", "says") as served:
        chosen = by_the_server(served, "drawn", choices, data, 1, num_concurrent=4, batch_size=8)
        said = by_the_server(served, "says", texts, data, 3)
    found = compare(by_bc2_eval(home, "drawn", "cmmlu", data, 1), chosen)
    assert (found["samples"], found["same"], found["missing"]) == (67, 67, [])
    assert found["greedy_differs"] == 0
    assert found["max_difference"] < 1e-4
    assert len({one["prediction"] for rows in chosen.values() for one in rows}) > 1
    wanted = by_bc2_eval(home, "says", "gsm8k", data, 3)
    found = compare(wanted, said)
    assert (found["samples"], found["same"], found["missing"]) == (3, 3, [])
    assert wanted["gsm8k"][0]["text"] == "#### 7"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data, or BC2_TEST_DATA")
def test_two_hundred_real_rows_of_cmmlu(home: Path) -> None:
    tokenizer = (REAL / "models/baichuan7b_sp_rebuilt/tokenizer.model").read_bytes()
    model = made_checkpoints.drawn(window=WINDOW, vocab_size=64_000)
    made_checkpoints.register(home, "drawn", model, tokenizer=tokenizer)
    task = AskedTask("cmmlu", 5)
    with serving(home, "drawn") as served:
        chosen = by_the_server(served, "drawn", task, REAL / "bench", 3, num_concurrent=4)
    found = compare(by_bc2_eval(home, "drawn", "cmmlu", REAL / "bench", 3), chosen)
    print({name: found[name] for name in ("samples", "same", "max_difference")})
    assert (found["samples"], found["same"], found["missing"]) == (201, 201, [])
    assert found["greedy_differs"] == 0
    assert found["max_difference"] < 1e-4
