"""The toy algorithm as an installed package: its folder, and one with its entry points."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_runs import train

from bc2.plugins import GROUP, foreign_algorithms
from bc2.registry import Artifact

TOY = """\
base = "small.toml"
name = "toy"
description = "Pairs for a toy algorithm"

[model]
head = "scalar"

[toy]
length = "12 steps"
batch_pairs = 16
micro_batch = 4
sequence_length = 32
precision = "fp32"
device = "cpu"
checkpoint_every = "4 steps"
eval_every = "4 steps"
optimizer = { learning_rate = 3e-3 }
schedule = { warmup = "2 steps" }
"""


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folders that a process needs on its path to find the toy, as if it were installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\ntoy = toy_algorithm:TOY\ntoy_critic = toy_critic:TOY_CRITIC\n"
        "adapted = adapted_pretraining:ADAPTED\n"
    )
    return os.pathsep.join([str(Path(__file__).parent), str(site)])


@pytest.fixture
def toy(small: Path, toy_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory with toy.toml and critic.toml.

    This process and those that it starts know the toys.
    """
    for folder in toy_path.split(os.pathsep):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("WARMED_PATH", toy_path)
    foreign_algorithms.cache_clear()
    (small / "toy.toml").write_text(TOY)
    (small / "critic.toml").write_text(
        TOY.replace("[toy]", "[toy_critic]").replace('"toy"', '"critic"')
    )
    yield small
    foreign_algorithms.cache_clear()


@pytest.fixture(scope="session")
def undisturbed(
    prepared_home: Path, toy_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    """The finished checkpoint of a toy's run that nothing happened to; each made once."""
    made: dict[tuple[str, ...], Artifact] = {}

    def run(*words: str) -> Artifact:
        if words not in made:
            with pytest.MonkeyPatch.context() as patch:
                home = tmp_path_factory.mktemp("undisturbed") / "home"
                shutil.copytree(prepared_home / "home", home)
                patch.setenv("BC2_HOME", str(home))
                made[words] = train(*words)
        return made[words]

    return run
