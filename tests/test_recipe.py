"""Recipes: inheritance, overrides, and errors that say file, line and key."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import threading
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.recipe import SECTIONS, Settings, load, shipped
from bc2.train.pretrain.pretrain_config import PretrainConfig

GOOD = """\
name = "good"

[model]
vocab_size = 512
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 4

[pretrain]
length = "10 steps"
batch_tokens = 256
micro_batch = 2
sequence_length = 64

[pretrain.optimizer]
learning_rate = 1e-3
"""


def write(folder: Path, text: str, name: str = "r.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fails(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        list(load(path, overrides).sections())
    assert caught.value.exit_code == 2
    return caught.value


def test_good_recipe_fills_in_defaults(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD))
    assert recipe.get(ModelConfig).position == "rope"
    assert recipe.get(PretrainConfig).optimizer.betas == (0.9, 0.95)
    assert recipe.resolved()["pretrain"]["z_loss"] == 2e-4


def test_unknown_key_names_file_line_key_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("num_heads = 4", "num_haeds = 4"))
    error = fails(path)
    assert "model.num_haeds" in error.what
    assert error.where == f"{path}:8"
    assert error.todo == "did you mean 'num_heads'?"


def test_unknown_nested_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("learning_rate = 1e-3", "learning_rat = 1e-3"))
    error = fails(path)
    assert (error.where, error.todo) == (f"{path}:17", "did you mean 'learning_rate'?")


def test_unknown_section(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("[model]", "[modle]"))
    error = fails(path)
    assert "[modle]" in error.what
    assert error.todo == "did you mean 'model'?"
    assert error.where == f"{path}:3"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("hidden_size = 64", 'hidden_size = "64"', 5),
        ("hidden_size = 64", "hidden_size = 64.5", 5),
        ("num_layers = 2", "num_layers = true", 7),
        ("num_layers = 2", "num_layers = -2", 7),
        ("learning_rate = 1e-3", "learning_rate = nan", 17),
        ("learning_rate = 1e-3", "learning_rate = 0", 17),
        ('length = "10 steps"', 'length = "10 apples"', 11),
    ],
)
def test_wrong_type_or_value_names_the_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    assert fails(path).where == f"{path}:{line}"


def test_a_batch_that_does_not_divide_offers_what_does(tmp_path: Path) -> None:
    error = fails(write(tmp_path, GOOD), "pretrain.batch_tokens=300")
    assert "256 or 384 would be" in error.what


def test_heads_must_divide_hidden_size(tmp_path: Path) -> None:
    assert "num_heads" in fails(write(tmp_path, GOOD), "model.num_heads=5").what


def test_broken_toml_names_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[model\n')
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where == f"{path}:2:7"


def test_set_takes_toml_or_a_plain_string(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load(path, ["model.num_layers=3", "pretrain.length=20 steps"])
    assert recipe.get(ModelConfig).num_layers == 3
    assert recipe.get(PretrainConfig).length == "20 steps"


def test_set_errors_name_the_override(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert fails(path, "model.num_layer=3").where == "--set model.num_layer=3"
    assert "section.key=value" in str(fails(path, "model.num_layers"))
    assert "is a value" in str(fails(path, "model.num_layers.x=1"))


def test_set_reaches_into_lists() -> None:
    recipe = load("tiny", ["corpus.sources.2.max_bytes=1000"])
    assert recipe.resolved()["corpus"]["sources"][2]["max_bytes"] == 1000
    # the shipped file itself is untouched
    assert load("tiny").resolved()["corpus"]["sources"][2]["max_bytes"] != 1000


def test_a_wrong_value_set_in_a_list_names_the_override() -> None:
    override = "corpus.sources.0.environment=nope"
    with pytest.raises(RecipeError) as caught:
        list(load("tiny", [override]).sections())
    assert caught.value.where == f"--set {override}"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("corpus.sources.9.name=x", "no item '9' in a list of"),
        ("corpus.sources.x.name=y", "no item 'x' in a list of"),
        ("corpus.sources.0=x", "name a key of the item"),
    ],
)
def test_what_is_no_item_of_a_list(override: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        load("tiny", [override])
    assert caught.value.where == f"--set {override}"


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("base = 3\n" + GOOD, "base must be a path", 1),
        ("tokenizer = 3\n" + GOOD, r"\[tokenizer\] must be a table", 1),
        (GOOD.replace('"good"', "5"), "name must be a string", 1),
    ],
)
def test_top_keys_of_another_type(tmp_path: Path, text: str, what: str, line: int) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=what) as caught:
        load(path)
    assert caught.value.where == f"{path}:{line}"


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a directory, not a recipe"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("pretrain.optimizer.betas=[0.9, 1.0]", r"each beta must lie in \[0, 1\)"),
        ("pretrain.weights={web = -1.0}", "a mixture weight cannot be negative"),
    ],
)
def test_numbers_out_of_their_range(tmp_path: Path, override: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        list(load(write(tmp_path, GOOD), [override]).sections())


def test_base_is_merged_key_by_key_and_errors_name_the_layer(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.toml")
    top = write(tmp_path, 'base = "base.toml"\n[model]\nnum_layers = 5\n', "top.toml")
    recipe = load(top)
    assert recipe.get(ModelConfig).num_layers == 5
    assert recipe.get(ModelConfig).hidden_size == 64
    write(tmp_path, GOOD.replace("hidden_size = 64", "hidden_size = 0"), "base.toml")
    assert fails(top).where == f"{tmp_path / 'base.toml'}:5"


def test_a_recipe_from_a_pipe_has_its_base_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD, "below.toml")
    ours, theirs = os.pipe()
    os.write(theirs, b'base = "below.toml"\n[model]\nhidden_sise = 5\n')
    os.close(theirs)
    recipe = load(f"/dev/fd/{ours}")
    assert recipe.name == "pipe"
    assert recipe.get(PretrainConfig).micro_batch == 2
    with pytest.raises(RecipeError) as error:
        recipe.get(ModelConfig)
    assert error.value.where == f"/dev/fd/{ours}:3"
    os.close(ours)


def test_a_recipe_from_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    writer = threading.Thread(target=(tmp_path / "fifo.toml").write_text, args=("[model]\n",))
    writer.start()
    assert load(tmp_path / "fifo.toml").name == "fifo"
    writer.join()


def test_an_override_that_is_no_text() -> None:
    with pytest.raises(RecipeError, match=r"corpus.sources.0.path: text that is not UTF-8"):
        load("tiny", ["corpus.sources.0.path=caf\udce9"])


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 'base = "b.toml"', "a.toml")
    write(tmp_path, 'base = "a.toml"', "b.toml")
    with pytest.raises(RecipeError, match="each other's base"):
        load(tmp_path / "a.toml")


def test_missing_recipe_suggests_a_shipped_one() -> None:
    with pytest.raises(RecipeError) as caught:
        load("recipes/tinny.toml")
    assert caught.value.todo == "did you mean 'tiny'?"


def test_a_base_lends_its_sections_but_not_its_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.toml")
    assert load(write(tmp_path, 'base = "base.toml"\n', "mine.toml")).name == "mine"


def test_a_name_that_cannot_be_registered_is_found_by_check(tmp_path: Path) -> None:
    from bc2.pipeline.table import check_recipe

    path = write(tmp_path, GOOD.replace('name = "good"', 'name = "a/b"'))
    with pytest.raises(RecipeError) as caught:
        check_recipe(load(path))
    assert caught.value.where == f"{path}:1"


def test_a_warmup_longer_than_the_run_is_found_by_check(tmp_path: Path) -> None:
    from bc2.pipeline.table import check_recipe

    with pytest.raises(RecipeError, match="warm-up of 2000 steps"):
        check_recipe(load(write(tmp_path, GOOD)))


def test_missing_section_is_said(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "[model]\nvocab_size = 5\n"))
    with pytest.raises(RecipeError, match=r"no \[pretrain\] section"):
        recipe.get(PretrainConfig)


def test_unkeyed_settings_stay_out_of_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    plain = load(path).get(PretrainConfig).keyed()
    logged = load(path, ["pretrain.log_every=5", "pretrain.micro_batch=1"])
    assert logged.get(PretrainConfig).keyed() == plain
    other = load(path, ["pretrain.optimizer.eps=1e-6"]).get(PretrainConfig).keyed()
    assert other != plain


SIZES = {
    "7b": (7_505_973_248, 6_476_271_616),
    "13b": (13_896_668_160, 12_609_541_120),
}
LADDER = {
    "11m": "11.51",
    "52m": "51.56",
    "108m": "108.01",
    "308m": "307.60",
    "835m": "835.00",
    "1.6b": "1565.60",
    "3b": "3019.33",
}


def test_every_shipped_recipe_loads_and_is_counted() -> None:
    from bc2.pipeline.table import check_recipe

    names = shipped()
    on_disk = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))
    assert len(names) == len(on_disk) == 37
    for name in names:
        recipe = load(name)
        check_recipe(recipe)
        assert recipe.description


@pytest.mark.parametrize("name", sorted(SIZES))
def test_published_parameter_counts(name: str) -> None:
    model = load(name).get(ModelConfig)
    assert (model.num_params(), model.num_params_non_embedding()) == SIZES[name]


@pytest.mark.parametrize("name", sorted(LADDER))
def test_ladder_has_the_published_sizes(name: str) -> None:
    model = load(f"ladder/{name}").get(ModelConfig)
    assert f"{model.num_params_non_embedding() / 1e6:.2f}" == LADDER[name]


@pytest.mark.parametrize("name", [name for name in shipped() if load(name).has(ModelConfig)])
def test_closed_form_agrees_with_the_model_on_the_meta_device(name: str) -> None:
    import torch

    from bc2.model.transformer import Transformer

    config = load(name).get(ModelConfig)
    with torch.device("meta"):
        model = Transformer(config)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    embedding = sum(size for n, size in sizes.items() if "embed_tokens" in n or "lm_head" in n)
    assert sum(sizes.values()) == config.num_params()
    assert sum(sizes.values()) - embedding == config.num_params_non_embedding()


def test_a_list_is_not_called_too_short_where_an_item_is_wrong(tmp_path: Path) -> None:
    from bc2.data.corpus_config import CorpusConfig

    source = '[[corpus.sources]]\nname = "s"\npath = "x.txt"\n'
    path = write(tmp_path, f'name = "c"\n{source}min_charakters = 3\n')
    with pytest.raises(RecipeError) as caught:
        load(path).get(CorpusConfig)
    assert caught.value.what == "unknown key corpus.sources[0].min_charakters"
    empty = write(tmp_path, 'name = "c"\n[corpus]\nsources = []\n')
    with pytest.raises(RecipeError, match="at least 1 item"):
        load(empty).get(CorpusConfig)


def settings_within(found: object) -> Iterator[type[Settings]]:
    """The classes of settings in an annotation, and in the fields of those."""
    if isinstance(found, type) and issubclass(found, Settings):
        yield from (base for base in found.__mro__ if issubclass(base, Settings))
        for info in found.model_fields.values():
            yield from settings_within(info.annotation)
    for part in typing.get_args(found):
        yield from settings_within(part)


def undocumented(settings: type[Settings]) -> list[str]:
    """Fields without a docstring below them."""
    (tree,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(tree, ast.ClassDef)
    following = zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True)
    told = {
        field.target.id
        for field, after in following
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    inherited = {name for base in settings.__bases__ for name in getattr(base, "model_fields", ())}
    return sorted(set(settings.model_fields) - told - inherited)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_says_what_it_is(section: str) -> None:
    module, name = SECTIONS[section].split(":")
    found = set(settings_within(getattr(importlib.import_module(module), name)))
    assert found
    assert not {one.__name__: undocumented(one) for one in found if undocumented(one)}
