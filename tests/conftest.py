"""Fixtures that several rooms share: a small home with real text, tokenizer and shards.

A test that runs a command as a process starts it by `warmed.run` or `warmed.Popen`, which take
what `subprocess` takes and save the seconds that Python, torch and bc2 need to start
(tests/warmed/warmed.py says what is the same and what is not). By `subprocess` itself start what
is about the start: time, imports, memory, hash seeds, ``PYTHONPATH``. And what can be a call of
`bc2.cli.main` or of a stage in this process should be one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import bc2  # noqa: F401 - its environment settings come before any import of torch
from bc2.plugins import GROUP, foreign_algorithms
from bc2.train.logs.runs import RunFacts
from bc2.train.metric import Metric, Metrics

# Real ranks on a CPU; and a test must not depend on what else the machine does.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes, or the drawing of one, depends on that too.
hypothesis.settings.register_profile(
    "bc2", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bc2")

# A shell starts what it puts into the background with SIGINT ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with SIGHUP. A handler is no part of what is inherited, and these tests go on.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# What bc2 keeps of the machine is kept aside; matplotlib's list of fonts and the index of lm-eval's
# tasks, which takes 10 s to build, stay where they are.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("MPLCONFIGDIR", str(_CACHE / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="bc2-tests-")
os.environ.pop("BC2_CACHE", None)
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
with contextlib.suppress(OSError):  # then there is no cache, and each process builds the index
    (_CACHE / "bc2" / "lm-eval").mkdir(parents=True, exist_ok=True)
Path(os.environ["XDG_CACHE_HOME"], "bc2").mkdir()
Path(os.environ["XDG_CACHE_HOME"], "bc2", "lm-eval").symlink_to(_CACHE / "bc2" / "lm-eval")

SMALL = """\
name = "small"
description = "A model of a few thousand parameters for tests"

[corpus]
heldout_fraction = 0.05

[[corpus.sources]]
name = "docs"
environment = "python-docs"
max_bytes = 400_000

[[corpus.sources]]
name = "code"
environment = "python-source"
max_bytes = 400_000

[tokenizer]
vocab_size = 1024

[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
context_length = 64

[pretrain]
length = "24 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
checkpoint_every = "4 steps"
eval_every = "8 steps"
eval_tokens = 2048
sample_tokens = 4

[pretrain.optimizer]
learning_rate = 3e-3

[pretrain.schedule]
warmup = "4 steps"
"""


#: Three micro members over `SMALL`, and one to extrapolate to: N is 2,608 at one layer of 16,
#: 20,640 at two of 32 (the reference) and 82,240 at two of 64.
LADDER = """\
base = "small.toml"
name = "micro"
description = "A ladder for tests"

[pretrain]
sample_prompts = 0
eval_every = "1000 steps"
checkpoint_every = "1000 steps"

[ladder]
reference_params = 20_640

[[ladder.members]]
model = { hidden_size = 32, intermediate_size = 64, num_layers = 2, num_heads = 2 }
length = "30 steps"

[[ladder.members]]
model = { hidden_size = 16, intermediate_size = 32, num_layers = 1, num_heads = 1 }
length = "2K tokens"

[[ladder.members]]
model = { hidden_size = 32, intermediate_size = 64, num_layers = 2, num_heads = 2 }
length = "18K tokens"
learning_rate = 2e-3
batch_tokens = 640

[ladder.extrapolation]
model = { hidden_size = 64, intermediate_size = 128, num_layers = 2, num_heads = 2 }
length = "12K tokens"
"""


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry home with the corpus, tokenizer and token shards of `SMALL`.

    Made once for all workers, by the first to ask: read it, and train in a copy.
    """
    from bc2 import recipe
    from bc2.pipeline.session import Session
    from bc2.registry import Registry

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "prepared"
    folder.mkdir(exist_ok=True)
    path, made = folder / "small.toml", folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            path.write_text(SMALL)
            Session(Registry.open(folder / "home")).obtain("tokens", recipe.load(path))
            made.touch()
    return folder


@pytest.fixture
def small(prepared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of `prepared_home` as the working directory: small.toml and $BC2_HOME."""
    shutil.copytree(prepared_home / "home", tmp_path / "home")
    shutil.copyfile(prepared_home / "small.toml", tmp_path / "small.toml")
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO_MODELS = """\
name = "two"

[model]
vocab_size = 256
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 2
context_length = 64

[two_models]
length = "10 steps"
batch_texts = 16
micro_batch = 4
sequence_length = 64
precision = "fp32"
device = "cpu"
schedule = { warmup = "2 steps" }
"""


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe of the algorithm `two_models`, which this process and its children find."""
    info = tmp_path / "site" / "two_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two_models\nVersion: 1.0\n")
    announced = f"[{GROUP}]\ntwo_models = two_models:TWO_MODELS\n"
    (info / "entry_points.txt").write_text(announced)
    monkeypatch.syspath_prepend(info.parent)
    made = Path(__file__).parent / "train" / "made"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(made), str(info.parent)]))
    foreign_algorithms.cache_clear()
    (tmp_path / "two.toml").write_text(TWO_MODELS)
    yield tmp_path / "two.toml"
    foreign_algorithms.cache_clear()


@pytest.fixture
def ladder_home(small: Path) -> Path:
    """The working directory with micro.toml and a home that has its token shards."""
    (small / "micro.toml").write_text(LADDER)
    return small


LogRun = Callable[..., Path]

#: A stage key for runs that only their logs are there of.
KEY = "0123456789ab" + 52 * "c"


@pytest.fixture
def log_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogRun:
    """Writes the folder of a run that never was, below $BC2_HOME: every row as training does."""
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))

    def write(
        name: str = "made", steps: int = 40, *, total: int = 40, key: str = KEY,
        end: dict[str, Any] | None = None, attempts: Sequence[int] = (0,),
        more: Sequence[dict[str, Any]] = (), evals: int = 10, facts: bool = True,
    ) -> Path:  # fmt: skip
        """Args: end: the last row of timing.jsonl; attempts: the steps they begin at;
        more: rows of metrics.jsonl, each after the row of its step."""
        folder = tmp_path / "home" / "runs" / f"{name}-{key[:12]}"
        folder.mkdir(parents=True)
        if facts:
            parents = ("d" * 64, "e" * 64)
            RunFacts(name, key, total, 512, 64, 0.5, parents).write(folder)
        metrics, timing = [_eval(0)] if evals else [], []
        for step in range(steps + 1):
            if step in attempts:
                event = "start" if not timing else "resume"
                timing.append({"event": event, "time": 1.7e9, "elapsed": 0.0, "step": step})
            if step:
                metrics.append(_step(step))
                timing.append(_times(step))
            metrics += [_eval(step)] if evals and step and step % evals == 0 else []
            metrics += [row for row in more if row["step"] == step]
        timing += [{"time": 1.7e9, "elapsed": 99.0, "step": steps, **end}] if end else []
        (folder / "metrics.jsonl").write_text(_lines(metrics))
        (folder / "timing.jsonl").write_text(_lines(timing))
        (folder / "recipe.json").write_text(
            json.dumps({"name": name, "model": {"hidden_size": 32}, "pretrain": {"seed": 7}})
        )
        return folder

    return write


#: Of an algorithm that is not pretraining: pairs, a headline that is no loss, two trained models.
PAIR_METRICS = Metrics(
    (
        Metric("margin", "margin", over="pairs", better="higher", headline=True),
        Metric(
            "loss", "pair loss", "nats per pair", over="pairs", better="lower", guarded=True
        ),
        Metric("kl", "KL to the reference", "nats per token", short="KL"),
        Metric("reward", "chosen reward", over="pairs", better="higher"),
        Metric("length", "answer length", "tokens", over="pairs", shown="figure"),
        Metric(
            "accuracy", "held-out accuracy", of="evaluation", over="pairs", better="higher",
            headline=True, short="accuracy",
        ),
        Metric(
            "pair_loss", "held-out pair loss", "nats per pair", of="evaluation", over="pairs",
            better="lower",
        ),
    )
)  # fmt: skip


@pytest.fixture
def pair_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogRun:
    """Writes the folder of a run of `PAIR_METRICS`, below $BC2_HOME.

    Rewards are in each fifth step alone, and a step's tokens differ.
    """
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))

    def write(
        steps: int = 40, *, evals: int = 10, metrics: Metrics = PAIR_METRICS, name: str = "pairs",
    ) -> Path:  # fmt: skip
        folder = tmp_path / "home" / "runs" / f"{name}-{KEY[:12]}"
        folder.mkdir(parents=True)
        RunFacts(name, KEY, 40, 512, 64, 0.5, ("d" * 64,), metrics).write(folder)
        logged = []
        for step in range(steps + 1):
            logged += [_pair_step(step)] if step else []
            logged += [_pair_eval(step)] if evals and step % evals == 0 else []
        begun = {"event": "start", "time": 1.7e9, "elapsed": 0.0, "step": 0}
        times = [{**_times(step), "tokens": 400 + step} for step in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text(_lines(logged))
        (folder / "timing.jsonl").write_text(_lines([begun, *times]))
        (folder / "recipe.json").write_text(json.dumps({"name": name, "pairs": {"seed": 7}}))
        return folder

    return write


def _pair_step(step: int) -> dict[str, Any]:
    rewards = {} if step % 5 else {"reward": -1.0 + step / 20}
    samples = [8 * step - 8, 8 * step - 1]
    return {
        "event": "step", "step": step, "tokens": 512 * step, "samples": samples,
        "loss": 0.7 - step / 100, "margin": -0.2 + step / 25, "kl": 1e-6 * step, **rewards,
        "length": 17.5, "grad_norm": 1.5, "clipped": step % 2 == 0, "lr": 1e-3,
        "critic.grad_norm": 0.25, "critic.clipped": False, "critic.lr": 2e-3,
    }  # fmt: skip


def _pair_eval(step: int) -> dict[str, Any]:
    # Better until step 30, and then worse again.
    accuracy = 0.5 + min(step, 30) / 100 - max(0, step - 30) / 200
    return {
        "event": "eval", "step": step, "tokens": 512 * step, "accuracy": accuracy,
        "pair_loss": 0.75 - accuracy / 2,
    }  # fmt: skip


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _step(step: int) -> dict[str, Any]:
    loss = 4.0 + 4.0 / step
    samples = [8 * step - 8, 8 * step - 1]
    return {
        "event": "step", "step": step, "tokens": 512 * step, "samples": samples, "loss": loss,
        "ce": loss, "z": 1.0, "grad_norm": 1.5, "clipped": step % 2 == 0, "lr": 1e-3,
    }  # fmt: skip


def _eval(step: int) -> dict[str, Any]:
    loss = 8.0 - step / 20
    return {
        "event": "eval", "step": step, "tokens": 512 * step, "heldout_loss": loss,
        "bits_per_byte": loss / 2, "heldout_tokens": 100,
    }  # fmt: skip


def _times(step: int) -> dict[str, Any]:
    parts = {"data": 0.1, "forward": 0.2, "head": 0.1, "backward": 0.5, "optimizer": 0.1}
    return {
        "event": "step", "time": 1.7e9 + step, "elapsed": 2.0 * step, "step": step, "step_s": 1.0,
        "tokens_per_s": 512.0, "flops": 1e9, "mfu": 0.25, "parts": parts,
    }  # fmt: skip
