"""The table of stages, the recipe's tables and the documentation: the same names, in one order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.prepare import prepare
from bc2.data.prep.stage_table import (
    ALWAYS,
    PREP_STAGES,
    build_stages,
    passed_over,
    stage_class,
)
from bc2.errors import DataError
from bc2.recipe import Settings

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def is_table(annotation: object) -> bool:
    return any(
        isinstance(kind, type) and issubclass(kind, Settings) for kind in get_args(annotation)
    )


def test_every_table_of_the_recipe_is_a_stage_in_the_same_order() -> None:
    tables = [
        name
        for name, field in CorpusConfig.model_fields.items()
        if field.default is None and is_table(field.annotation)
    ]
    assert [name for name in PREP_STAGES if name != ALWAYS] == tables
    assert len(tables) == 10


@pytest.mark.parametrize("name", PREP_STAGES)
def test_a_stage_of_the_table_has_its_name(name: str) -> None:
    found = stage_class(name)
    assert found.name == name
    assert found.version >= 1
    assert found.__doc__


def test_the_documentation_has_the_stages_in_order_with_their_reasons() -> None:
    row = r"^\| (?:`\[corpus\.(\w+)\]`|\(always\)) \|.*\|([^|]*)\|$"
    rows = re.findall(row, DOCS.read_text("utf-8"), re.MULTILINE)
    assert [name or ALWAYS for name, _ in rows] == list(PREP_STAGES)
    for name, cell in rows:
        reasons = stage_class(name or ALWAYS).reasons
        told = re.findall(r"`([^`]+)`", cell)
        assert set(told) <= {*reasons, "pattern:NAME"}, name
        if "such as" not in cell and "…" not in cell:
            assert set(told) == set(reasons), name


def of_languages(folder: Path, *languages: str | None, **tables: object) -> CorpusConfig:
    folder.joinpath("a.txt").write_text("Some words, and a few more of them, end here.\n" * 9)
    named = [
        {"name": f"s{number}", "path": str(folder / "a.txt"), "lang": lang}
        for number, lang in enumerate(languages)
    ]
    made = {"sources": named, "heldout_fraction": 0, **tables}
    return CorpusConfig.model_validate_json(json.dumps(made))


@pytest.mark.parametrize(
    "lang", ["en", "EN", "en-US", "zh-CN", "zh_Hans", "code", "Code-Python", "und", "", None]
)
def test_a_language_that_the_stages_know_is_passed_over_by_none(
    tmp_path: Path, lang: str | None
) -> None:
    config = of_languages(tmp_path, lang, quality={}, heuristics={}, safety={}, passages={})
    assert passed_over(build_stages(config), config) == []


def test_a_language_that_a_stage_does_not_know_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    english = {"languages": ["en"]}
    config = of_languages(tmp_path, "fr", "eng", "fr", None, "en", quality=english, heuristics={})
    with suppress(DataError):  # what is left of such a text is not the question
        prepare(config, tmp_path / "corpus")
    told = [line for line in capsys.readouterr().err.splitlines() if "lang" in line]
    scores = "quality gives it no scores (corpus.quality.languages)"
    letters = "heuristics judges it by its letters, as Chinese or as other text"
    assert told == [
        f"warning: text with lang = 'fr': {letters}; {scores}",
        f"warning: text with lang = 'eng': {letters}; {scores}",
        f"warning: text without lang: {scores}",
    ]
    assert passed_over(build_stages(of_languages(tmp_path, "fr")), config) == []


def test_only_the_stages_of_the_recipe_and_what_they_need_are_imported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    config = {"sources": [{"name": "a", "path": str(tmp_path)}], "normalise": {}, "near": {}}
    made = CorpusConfig.model_validate_json(json.dumps(config))
    assert [stage.name for stage in build_stages(made)] == ["normalise", "exact", "near"]
    script = (
        "import sys\nfrom bc2.data.corpus_config import CorpusConfig\n"
        "from bc2.data.prep.stage_table import PREP_STAGES, build_stages\n"
        "import bc2.data.prep.prepare\n"
        "build_stages(CorpusConfig.model_validate_json(sys.argv[1]))\n"
        "found = (name for name, at in PREP_STAGES.items() if at.split(':')[0] in sys.modules)\n"
        "print(*found)\n"
        "heavy = 'torch sklearn scipy datasets lm_eval pandas daft ray transformers matplotlib'\n"
        "assert not set(heavy.split()) & set(sys.modules), sorted(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, json.dumps(config)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.stdout.split() == ["normalise", "exact", "near"]
