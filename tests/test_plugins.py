"""Algorithms of other packages, found by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bc2 import plugins, recipe
from bc2.errors import RecipeError, UsageError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on the path with two entry points."""
    info = tmp_path / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{plugins.GROUP}]\nfirst = foreign_one:FIRST\nsecond = foreign_one:SECOND\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.foreign_algorithms.cache_clear()
    yield tmp_path
    plugins.foreign_algorithms.cache_clear()
    sys.modules.pop("foreign_one", None)


WHOLE = """\
from typing import ClassVar

from bc2.recipe import Section


class FirstConfig(Section):
    section: ClassVar[str] = "first"
    size: int = 1


class First:
    section = FirstConfig


FIRST = SECOND = First()
"""


def test_its_section_is_one_of_a_recipe(package: Path) -> None:
    (package / "foreign_one.py").write_text(WHOLE)
    (package / "r.toml").write_text("[first]\nsize = 3\n")
    loaded = recipe.load(package / "r.toml")
    assert loaded.section_names == ("first",)
    assert loaded.resolved()["first"] == {"size": 3}
    with pytest.raises(RecipeError, match=r"unknown key first\.siz"):
        list(recipe.load(package / "r.toml", ["first.siz=1"]).sections())


@pytest.mark.parametrize(
    ("code", "section", "said"),
    [
        ("import nothing_of_this_name", "first", "No module named"),
        ("FIRST = 3", "first", "no attribute 'section'"),
        ("", "first", "no attribute 'FIRST'"),
        (WHOLE, "second", r"its section is \[first\]"),
        (WHOLE.replace("First()", "First"), "first", "FIRST is a class; name an instance"),
    ],
)
def test_a_broken_one_is_named(package: Path, code: str, section: str, said: str) -> None:
    (package / "foreign_one.py").write_text(code)
    (package / "r.toml").write_text(f"[{section}]\n")
    with pytest.raises(UsageError, match=said) as caught:
        list(recipe.load(package / "r.toml").sections())
    assert (
        caught.value.where
        == f"entry point {section} = foreign_one:{section.upper()} of {plugins.GROUP}"
    )


def test_two_packages_with_one_name(package: Path) -> None:
    other = package / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nfirst = foreign_two:FIRST\n")
    (package / "r.toml").write_text("[first]\n")
    with pytest.raises(UsageError, match="two packages bring an algorithm 'first'"):
        recipe.load(package / "r.toml")


def test_what_nobody_brings_is_unknown(package: Path) -> None:
    (package / "r.toml").write_text("[third]\n")
    with pytest.raises(RecipeError, match="unknown section") as caught:
        recipe.load(package / "r.toml")
    assert caught.value.todo
