"""The sections [corpus] and [tokens]: what they refuse, and what keys a corpus."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bc2 import recipe
from bc2.data import corpus_stage, versions
from bc2.data.chats import chats_stage
from bc2.data.chats.chats_config import ChatsConfig
from bc2.data.corpus_config import CorpusConfig, SourceConfig, TokensConfig
from bc2.errors import RecipeError


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "got none of them"),
        ({"path": "a", "hf": "b"}, "got path and hf"),
        ({"path": "a", "environment": "python-docs"}, "got path and environment"),
        ({"environment": "python"}, "python-docs"),
        ({"path": "a", "revision": "main"}, "belong to hf"),
        ({"path": "a", "split": "test"}, "belong to hf"),
        ({"hf": "a", "include": ("*",)}, "choose files"),
        ({"hf": "a", "encoding": "gbk"}, "encoding belongs to the files of a path"),
        ({"environment": "python-docs", "encoding": "gbk"}, "encoding belongs to the files"),
        ({"path": "a", "encoding": "gb18300"}, "such as gb18030"),
        ({"path": ""}, "at least 1 character"),
        ({"path": "a", "max_bytes": 0}, "greater than 0"),
        ({"path": "a", "name": "../up"}, "pattern"),
        ({"path": "a", "name": "a/b"}, "pattern"),
    ],
)
def test_impossible_sources(fields, says):
    with pytest.raises(ValidationError, match=says):
        SourceConfig(**{"name": "s", **fields})


def test_impossible_corpora():
    one, two = SourceConfig(name="A", path="a"), SourceConfig(name="a", path="b")
    with pytest.raises(ValidationError, match="two sources are named 'a'"):
        CorpusConfig(sources=(one, two))
    with pytest.raises(ValidationError):
        CorpusConfig(sources=())
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValidationError):
            CorpusConfig(sources=(one,), heldout_fraction=fraction)


def test_a_recipe_names_file_line_and_key(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[corpus]\n[[corpus.sources]]\nname = "a"\npaht = "x"\n')
    with pytest.raises(RecipeError) as caught:
        recipe.load(path).get(CorpusConfig)
    assert "corpus.sources[0].paht" in caught.value.what
    assert caught.value.where == f"{path}:4"
    assert caught.value.todo == "did you mean 'path'?"


def test_a_recipe_gives_a_corpus(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        '[corpus]\nheldout_fraction = 0\n[[corpus.sources]]\nname = "a"\npath = "x"\n'
        'exclude = ["*.gz"]\n[tokens]\nworkers = 2\n'
    )
    config = recipe.load(path).get(CorpusConfig)
    assert config.sources == (SourceConfig(name="a", path="x", exclude=("*.gz",)),)
    assert recipe.load(path).get(TokensConfig).workers == 2


def test_places_and_processes_are_not_keyed():
    one, two = (CorpusConfig(sources=(SourceConfig(name="a", path=p),)) for p in ("x", "y"))
    assert one.keyed() == two.keyed()
    other = CorpusConfig(sources=(SourceConfig(name="a", path="x", text_field="body"),))
    assert one.keyed() != other.keyed()
    assert TokensConfig(workers=3, corpus="a").keyed() == TokensConfig().keyed() == {}


def test_an_encoding_is_keyed_by_one_name_where_it_is_not_utf8():
    def keyed(**more):
        return CorpusConfig(sources=(SourceConfig(name="a", path="x", **more),)).keyed()

    assert keyed() == keyed(encoding="UTF8")
    assert "encoding" not in str(keyed())
    assert keyed() != keyed(encoding="CP936") == keyed(encoding="gbk")


@pytest.mark.parametrize(
    ("stage", "config"),
    [(corpus_stage.STAGE, CorpusConfig), (chats_stage.STAGE, ChatsConfig)],
)
def test_what_rows_are_malformed_is_keyed_where_they_are_skipped(tmp_path, stage, config):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    settings = config.model_validate({"sources": [{"name": "a", "path": str(path)}]}, strict=False)
    assert "malformed_rows" not in stage.identity_of(settings, tmp_path)
    skipping = settings.model_copy(update={"malformed": "skip"})
    found = stage.identity_of(skipping, tmp_path)
    assert found["malformed_rows"] == versions.MALFORMED_ROWS
