"""Finding and making: keys, inputs by kind, settings without a recipe, what dies half-way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bc2 import recipe
from bc2.errors import DataError, RefError
from bc2.pipeline import table
from bc2.pipeline.session import Session
from bc2.pipeline.stage import Input, Stage, Task
from bc2.pipeline.table import STAGES, stage_of
from bc2.recipe import SECTIONS, Section, Settings
from bc2.registry import Artifact, Registry, stage_key


class WordsConfig(Section):
    """Makes a corpus of some words."""

    section: ClassVar[str] = "words"
    words: str
    source: str | None = None


class LawSettings(Settings):
    """What a law records in place of a recipe."""

    form: str = "power"


def _write(task: Task[WordsConfig]) -> Mapping[str, Any]:
    (task.out / "words.txt").write_text(task.settings.words)
    return {"count": len(task.settings.words.split())}


def _fit(task: Task[LawSettings]) -> Mapping[str, Any]:
    names = [artifact.name for artifact in task.inputs.by_name["corpus"]]
    (task.out / "law.txt").write_text(f"{task.settings.form}: {' '.join(names)}")
    return {"points": len(names)}


WORDS = Stage(kind="corpus", version=7, section=WordsConfig, make=_write)
LAW = Stage(kind="law", version=1, make=_fit)
MERGED = Stage(
    kind="tokens",
    version=1,
    section=WordsConfig,
    inputs=(Input("corpus", lambda config: (config.source or "").split(), many=True),),
    make=_write,
)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Announce stages of this file in the tables."""

    def announce(**named: str) -> None:
        for kind, name in named.items():
            monkeypatch.setitem(STAGES, kind, f"{__name__}:{name}")

    monkeypatch.setitem(SECTIONS, "words", f"{__name__}:WordsConfig")
    monkeypatch.setattr(table, "importlib", _Here)
    return announce


class _Here:
    """Finds this file under its own name: pytest imports it by path."""

    @staticmethod
    def import_module(name: str) -> Any:
        import importlib
        import sys

        return sys.modules[name] if name in sys.modules else importlib.import_module(name)


@pytest.fixture
def session(tmp_path: Path, stages: Callable[..., None]) -> Session:
    stages(corpus="WORDS", law="LAW", tokens="MERGED")
    return Session(Registry.open(tmp_path / "home"))


def words(folder: Path, text: str, name: str = "words", source: str = "") -> recipe.Recipe:
    path = folder / f"{name}.toml"
    path.write_text(f'[words]\nwords = "{text}"\n' + (f'source = "{source}"\n' if source else ""))
    return recipe.load(path)


def test_the_key_is_of_kind_version_settings_and_parents(session: Session, tmp_path: Path) -> None:
    made = session.obtain("corpus", words(tmp_path, "a b"))
    settings = {"words": "a b", "source": None}
    assert made.key == stage_key("corpus", 7, settings, ())
    assert made.manifest.facts["count"] == 2
    assert made.manifest.recipe["words"] == settings


def test_found_the_second_time_and_made_anew_when_asked(session: Session, tmp_path: Path) -> None:
    loaded = words(tmp_path, "a b")
    made = session.obtain("corpus", loaded)
    again = Session(session.registry)
    assert again.obtain("corpus", loaded) == made
    assert again.built == []
    fresh = Session(session.registry, fresh=True)
    assert fresh.obtain("corpus", loaded).digest == made.digest
    assert len(fresh.built) == 1


def test_inputs_are_looked_for_without_making_them(session: Session, tmp_path: Path) -> None:
    words(tmp_path, "b", "b")
    merged = words(tmp_path, "x", "m", "corpus/a b.toml")
    with pytest.raises(RefError, match="corpus/a"):
        session.find_inputs("tokens", merged)
    session.obtain("corpus", words(tmp_path, "a", "a"))
    assert session.find_inputs("tokens", merged) is None
    assert len(session.registry.list()) == 1
    made = session.obtain_inputs("tokens", merged)
    assert Session(session.registry).find_inputs("tokens", merged) == made
    assert [one.name for one in made.all()] == ["a", "b"]


def test_several_inputs_of_a_kind_in_the_order_that_they_are_named(
    session: Session, tmp_path: Path
) -> None:
    made = [session.obtain("corpus", words(tmp_path, name, name)) for name in ("b", "a", "c")]
    merged = session.obtain("tokens", words(tmp_path, "x", "m", "corpus/c corpus/a b.toml"))
    assert merged.parents == (made[2].digest, made[1].digest, made[0].digest)


def test_a_named_input_that_is_not_there_ends_it_before_any_work(
    session: Session, tmp_path: Path
) -> None:
    words(tmp_path, "late", "late")
    with pytest.raises(RefError, match="nowhere"):
        session.obtain("tokens", words(tmp_path, "x", "m", "late.toml corpus/nowhere"))
    assert session.registry.list() == []


def test_recorded_settings_in_place_of_a_recipe(session: Session, tmp_path: Path) -> None:
    points = [session.obtain("corpus", words(tmp_path, name, name)) for name in ("p", "q")]

    def fit(settings: LawSettings) -> Artifact:
        return session.obtain_recorded("law", "fit", settings, {"corpus": points})

    law = fit(LawSettings())
    assert law.parents == tuple(point.digest for point in points)
    assert law.manifest.recipe == {"name": "fit", "law": {"form": "power"}}
    assert law.file("law.txt").read_text() == "power: p q"
    assert fit(LawSettings()) == law
    assert fit(LawSettings(form="kaplan")) != law


def test_checks_before_work_run_once_and_only_if_something_is_made(
    session: Session, tmp_path: Path
) -> None:
    calls: list[int] = []
    loaded = words(tmp_path, "x", "m", "one.toml")
    words(tmp_path, "one", "one")
    session.before_work = lambda: calls.append(1)
    session.obtain("tokens", loaded)
    assert calls == [1]
    again = Session(session.registry, before_work=lambda: calls.append(2))
    again.obtain("tokens", loaded)
    assert calls == [1]


READ = Stage(
    kind="corpus", version=1, section=WordsConfig, make=_write,
    identity=lambda config, home: {"now": Path(config.words).read_text()},
)  # fmt: skip


def _change(task: Task[WordsConfig]) -> Mapping[str, Any]:
    Path(task.settings.words).write_text("other")
    return {}


CHANGING = Stage(
    kind="corpus", version=1, section=WordsConfig, make=_change, identity=READ.identity
)


def test_an_input_that_changes_while_it_is_read_fails_the_stage(
    tmp_path: Path, stages: Callable[..., None]
) -> None:
    stages(corpus="CHANGING")
    (tmp_path / "text").write_text("some")
    session = Session(Registry.open(tmp_path / "home"))
    with pytest.raises(DataError, match="changed while it was read"):
        session.obtain("corpus", words(tmp_path, str(tmp_path / "text")))
    assert session.registry.list() == []


def _slowly(task: Task[WordsConfig]) -> Mapping[str, Any]:
    task.work.mkdir(exist_ok=True)
    with (task.work / "started").open("a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(0.6)
    return _write(task)


SLOW = Stage(kind="corpus", version=1, section=WordsConfig, make=_slowly)


def _obtain(home: Path, loaded: recipe.Recipe) -> None:
    Session(Registry.open(home)).obtain("corpus", loaded)


def test_two_processes_make_it_once_and_a_killed_one_leaves_its_work(
    tmp_path: Path, stages: Callable[..., None]
) -> None:
    stages(corpus="SLOW")
    home, loaded = tmp_path / "home", words(tmp_path, "a")
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=_obtain, args=(home, loaded))
    first.start()
    until = time.monotonic() + 30
    while not (logs := list(home.glob("work/*/work/started"))) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    assert logs[0].read_text().split() == [str(first.pid)]
    both = [fork.Process(target=_obtain, args=(home, loaded)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert len(Registry.open(home).list("corpus")) == 1
    # The folder of the key is left as a lock, and empty.
    assert [list(folder.iterdir()) for folder in (home / "work").iterdir()] == [[]]


def test_every_stage_of_the_table_makes_its_kind_and_has_a_section() -> None:
    for kind in STAGES:
        stage = stage_of(kind)
        assert stage.kind == kind
        assert stage.version >= 1
        if stage.section is not None:
            assert stage.section.section in SECTIONS


def test_a_stage_without_make_and_run_is_refused() -> None:
    with pytest.raises(ValueError, match="one of make and run"):
        Stage(kind="law", version=1)
