"""What overrides reach, and what artifacts record of a recipe."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from pathlib import Path

import pytest
import warmed

from bc2 import commands, recipe
from bc2.errors import RecipeError
from bc2.pipeline.reach import check_overrides, load_for, reach, unread_sections
from bc2.pipeline.session import Session
from bc2.pipeline.table import ALGORITHMS, STAGES, algorithm_named, stage_of
from bc2.registry import Kind, Registry

TOKENS_ELSEWHERE = ["pretrain.tokens=small.toml"]

ALL = {"corpus", "tokenizer", "tokens", "model", "pretrain", "parallel"}


@pytest.mark.parametrize(
    ("kind", "overrides", "sections", "named"),
    [
        ("corpus", [], {"corpus"}, ()),
        ("tokenizer", [], {"corpus", "tokenizer"}, ()),
        ("tokens", [], {"corpus", "tokenizer", "tokens"}, ()),
        ("checkpoint", [], ALL, ()),
        ("checkpoint", ["pretrain.tokens=tokens/x"], {"model", "pretrain", "parallel"},
         (("tokens", "tokens/x"),)),
        ("checkpoint", ["tokens.tokenizer=tokenizer/x"], ALL - {"tokenizer"},
         (("tokenizer", "tokenizer/x"),)),
        ("tokens", ["tokens.tokenizer=a.toml", "tokens.corpus=b"], {"tokens"},
         (("corpus", "b"), ("tokenizer", "a.toml"))),
        ("tokenizer", ["tokenizer.corpus=b"], {"tokenizer"}, (("corpus", "b"),)),
    ],
)  # fmt: skip
def test_what_is_read_ends_at_what_is_named(
    small: Path, kind: Kind, overrides: list[str], sections: set[str],
    named: tuple[tuple[str, str], ...],
) -> None:  # fmt: skip
    found = reach(recipe.load("small.toml", overrides), kind)
    assert found.sections == sections
    assert found.named == named


@pytest.mark.parametrize(
    ("kind", "overrides", "what"),
    [
        ("checkpoint", [*TOKENS_ELSEWHERE, "tokenizer.vocab_size=700"], "its own [tokenizer]"),
        ("checkpoint", [*TOKENS_ELSEWHERE, "tokens.workers=1"], "its own [tokens]"),
        ("checkpoint", ["pretrain.tokens=tokens/small", "corpus.min_characters=2"],
         "its tokens from 'tokens/small'"),
        ("tokenizer", ["tokenizer.corpus=corpus/small", "corpus.min_characters=2"],
         "its corpus from 'corpus/small'"),
    ],
)  # fmt: skip
def test_an_override_that_reaches_nothing_is_refused(
    small: Path, kind: Kind, overrides: list[str], what: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_for(kind, "small.toml", overrides)
    assert what in caught.value.what
    assert caught.value.where == f"--set {overrides[-1]}"
    # The section's own verb reads it.
    own: Kind = "tokenizer" if overrides[-1].startswith("tokenizer.") else "corpus"
    load_for(own, "small.toml", overrides)


def test_what_only_a_later_command_reads_is_said(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["pretrain.length=5 steps", "tokenizer.vocab_size=650", "corpus.min_characters=2"]
    load_for("corpus", "small.toml", overrides)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" has no effect here")[0] for line in said] == [
        "--set pretrain.length=5 steps",
        "--set tokenizer.vocab_size=650",
    ]
    load_for("checkpoint", "small.toml", overrides)
    assert capsys.readouterr().err == ""


def test_a_command_that_reads_less_than_its_kind(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = recipe.load("small.toml", ["tokenizer.vocab_size=650"])
    check_overrides(loaded, "checkpoint", reads=("model",))
    assert "has no effect here" in capsys.readouterr().err
    loaded = recipe.load("small.toml", [*TOKENS_ELSEWHERE, "tokenizer.vocab_size=650"])
    with pytest.raises(RecipeError, match="reaches nothing"):
        check_overrides(loaded, "checkpoint", reads=("model", "pretrain"))


def test_every_section_is_read_by_its_stage_or_by_a_command() -> None:
    """A new section is known to the stages, or it is one that a command alone reads."""
    by_stages = {name for kind in STAGES for name in stage_of(kind).sections}
    by_stages |= {name for one in ALGORITHMS for name in algorithm_named(one).stage.sections}
    assert set(recipe.SECTIONS) - by_stages == {"ladder", "merge"}


def test_an_artifact_records_what_had_an_effect(small: Path) -> None:
    session = Session(Registry.open())
    loaded = recipe.load("small.toml", ["pretrain.length=5 steps"])
    own = session.obtain("checkpoint", loaded)
    assert set(own.manifest.recipe) == {"name", "description", "corpus", "tokenizer", "model",
                                        "pretrain"}  # fmt: skip
    other = recipe.load("small.toml", [*TOKENS_ELSEWHERE, "pretrain.length=5 steps"])
    named = session.obtain("checkpoint", other)
    assert named.key == own.key  # where the tokens come from is no part of it
    overrides = [*TOKENS_ELSEWHERE, "pretrain.length=5 steps", "pretrain.seed=1"]
    again = session.obtain("checkpoint", recipe.load("small.toml", overrides))
    assert set(again.manifest.recipe) == {"name", "description", "model", "pretrain"}
    corpus = session.obtain("corpus", loaded)
    assert set(corpus.manifest.recipe) == {"name", "description", "corpus"}


def test_sections_of_a_file_that_are_not_read_are_no_error(small: Path) -> None:
    assert unread_sections(recipe.load("small.toml")) == {}
    loaded = recipe.load("small.toml", TOKENS_ELSEWHERE)
    ((kind, (sections, _)),) = unread_sections(loaded).items()
    assert (kind, sections) == ("checkpoint", ["corpus", "tokenizer"])


def test_another_recipes_tokens_are_not_held_against_this_ones_tokenizer(small: Path) -> None:
    fewer = ["tokenizer.vocab_size=2048"]
    with pytest.raises(RecipeError, match="is smaller than"):
        reach(recipe.load("small.toml", fewer), "checkpoint")
    reach(recipe.load("small.toml", [*fewer, *TOKENS_ELSEWHERE]), "checkpoint")
    reach(recipe.load("small.toml", [*fewer, "tokens.tokenizer=tokenizer/other"]), "checkpoint")


def test_commands_load_recipes_for_what_they_make() -> None:
    """A verb that takes --set checks what it reaches: `load` alone is for `bc2 recipe`."""
    folder = Path(inspect.getfile(commands)).parent
    plain = set()
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "bc2.recipe":
                plain |= {path.stem for name in node.names if name.name == "load"}
    assert plain == {"recipe"}


@pytest.mark.parametrize(
    "verb",
    [
        ("pretrain",),
        ("plan", "--device", "cpu"),
        ("bench",),
        ("bench", "generate"),
        ("verify", "resume"),
        ("data", "tokenize", "--set", "tokens.tokenizer=tokenizer/small"),
    ],
)
def test_verbs_refuse_it(small: Path, verb: tuple[str, ...]) -> None:
    words = [sys.executable, "-P", "-m", "bc2", *verb, "small.toml"]
    words += ["--set", TOKENS_ELSEWHERE[0], "--set", "tokenizer.vocab_size=700"]
    run = warmed.run(words, capture_output=True, text=True, check=False, env={**os.environ})
    assert run.returncode == 2, run.stderr
    assert "tokenizer.vocab_size reaches nothing" in run.stderr
    assert len(Registry.open().list()) == 3
