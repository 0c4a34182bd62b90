"""Stage keys last: what was registered under one is found under it by every later version.

`golden/stage_keys.json` was recorded before a setting could be left out of a key (bc2 0.1.0):
each section of the recipes of then, and each option of theirs changed, with its key. Those with
[corpus.heuristics] were recorded again with version 2 of that stage, which has other limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model

from bc2.data.corpus_config import CorpusConfig
from bc2.model.model_config import ModelConfig
from bc2.recipe import (
    KEYED_UNLESS_DEFAULT,
    SECTIONS,
    UNKEYED,
    Settings,
    keying,
    section_class,
    to_keyed,
)
from bc2.registry import stage_key
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.pretrain_config import PretrainConfig

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "stage_keys.json").read_text())
FIELDS = json.loads((GOLDEN / "keyed_fields.json").read_text())
PARENTS = ("a" * 64, "b" * 64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']} {case['from'][8:60]}")
def test_keys_of_before_are_keys_of_today(case: dict[str, Any]) -> None:
    keyed = {
        name: section_class(name).model_validate_json(json.dumps(data)).keyed()
        for name, data in case["sections"].items()
    }
    settings = keyed if case["kind"] == "checkpoint" else keyed[case["kind"]]
    assert stage_key(case["kind"], 1, settings, PARENTS) == case["key"]


def fields(cls: type[Settings], at: str) -> Iterator[tuple[str, Any]]:
    """Every field of a section and of its tables that may enter a key, by its path in a recipe."""
    for name, info in cls.model_fields.items():
        if keying(info) == "never":
            continue
        yield f"{at}.{name}", info
        for table in tables(info.annotation):
            yield from fields(table, f"{at}.{name}")


def tables(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from tables(argument)


def test_a_new_field_says_when_it_enters_a_key() -> None:
    every = dict(pair for name in SECTIONS for pair in fields(section_class(name), name))
    always = {path for path, info in every.items() if keying(info) == "always"}
    new, gone = sorted(always - set(FIELDS["always"])), sorted(set(FIELDS["always"]) - always)
    assert not new, (
        f"{', '.join(new)} would change the key of everything that users have made. Write "
        "Field(..., json_schema_extra=KEYED_UNLESS_DEFAULT), with a default that does what was "
        "done before; or UNKEYED if it changes no result. In a section or table that is itself "
        "new, add it to `always` in tests/golden/keyed_fields.json."
    )
    assert not gone, (
        f"{', '.join(gone)} is always part of a key: a key without it finds nothing that was "
        "made with it. Keep its name, and keep it keyed."
    )


def test_the_default_of_a_later_field_never_changes() -> None:
    every = dict(pair for name in SECTIONS for pair in fields(section_class(name), name))
    defaults = {
        path: to_keyed(info.get_default(call_default_factory=True))
        for path, info in every.items()
        if keying(info) == "unless default"
    }
    assert defaults == FIELDS["unless default"], (
        "keys without a KEYED_UNLESS_DEFAULT field are those of its first default: write that "
        "into `unless default` in tests/golden/keyed_fields.json when the field is new, and do "
        "not change it afterwards"
    )


class Table(Settings):
    depth: int = 1
    logged: int = Field(0, json_schema_extra=UNKEYED)
    later: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)


#: Type of a field, its default as written, and other values that it may have.
LATER: list[tuple[Any, Any, st.SearchStrategy[Any]]] = [
    (int, 3, st.integers().filter(lambda value: value != 3)),
    (float, 0, st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: value != 0)),
    (bool, True, st.just(False)),
    (str, "mean", st.sampled_from(["", "sum", "Mean"])),
    (int | None, None, st.integers()),
    (int | Literal[False], False, st.integers()),
    (tuple[int, ...], (), st.lists(st.integers(), min_size=1).map(tuple)),
    (tuple[float, float], (0, 1.0), st.tuples(st.just(0.5), st.floats(0, 1))),
    (dict[str, float], {}, st.dictionaries(st.sampled_from("ab"), st.floats(0, 1), min_size=1)),
    (Table, Table(), st.builds(Table, depth=st.integers(2)) | st.just(Table(later=True))),
    (Table | None, None, st.just(Table()) | st.builds(Table, logged=st.integers())),
    (tuple[Table, ...], (Table(),), st.just(()) | st.just((Table(), Table()))),
]


@pytest.mark.parametrize(
    ("cls", "given_settings"),
    [
        (ModelConfig, {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_layers": 1,
                       "num_heads": 1}),
        (PretrainConfig, {"length": "1 steps", "batch_tokens": 4096, "micro_batch": 1}),
        (AdamWConfig, {"eps": 1e-6}),
        (Table, {"depth": 2}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
@settings(deadline=None)
@given(data=st.data())
def test_a_later_field_enters_the_key_only_where_it_differs(
    cls: type[Settings], given_settings: dict[str, Any], data: st.DataObject
) -> None:
    annotation, default, others = data.draw(st.sampled_from(LATER))
    field = Field(default, json_schema_extra=KEYED_UNLESS_DEFAULT)
    later = create_model("Later", __base__=cls, added=(annotation, field))
    before = cls(**given_settings).keyed()
    made = later(**given_settings)
    assert made.keyed() == before
    # Said or not, the default is the default.
    assert later(**given_settings, added=made.added).keyed() == before  # type: ignore[attr-defined]
    other = later(**given_settings, added=data.draw(others))
    assert other.keyed() == {**before, "added": to_keyed(other.added)}  # type: ignore[attr-defined]


def test_later_fields_in_nested_tables_and_lists() -> None:
    class Whole(Settings):
        one: Table = Table()
        maybe: Table | None = None
        many: tuple[Table, ...] = ()
        named: dict[str, Table] = Field(default_factory=dict)

    tables = {"one": Table(), "maybe": Table(), "many": (Table(), Table()), "named": {"a": Table()}}
    keyed = Whole(**tables).keyed()  # type: ignore[arg-type]
    depth = {"depth": 1}
    assert keyed == {"one": depth, "maybe": depth, "many": [depth, depth], "named": {"a": depth}}
    changed = Whole(many=(Table(), Table(later=True))).keyed()
    assert changed["many"] == [depth, {"depth": 1, "later": True}]


def test_what_a_later_table_leaves_out_of_its_own_key_does_not_bring_it_in() -> None:
    class Whole(Settings):
        table: Table = Field(Table(), json_schema_extra=KEYED_UNLESS_DEFAULT)

    assert Whole(table=Table(logged=5)).keyed() == {}
    assert Whole(table=Table(depth=5)).keyed() == {"table": {"depth": 5}}


def test_whatever_a_setting_is_called_it_is_in_the_key() -> None:
    """How a field is declared decides, here and in tables and dicts; no name is special."""
    names = ["size", "nfiles", "name", "path", "version", "kind", "seed", "digest", "workers"]
    numbers: dict[str, Any] = dict.fromkeys(names, (int, 1))
    inner = create_model("Inner", __base__=Settings, **numbers)
    outer = create_model(
        "Outer", __base__=Settings, **numbers, table=(inner, inner()), free=(dict[str, int], {})
    )
    base = dict.fromkeys(names, 1)
    assert outer(free=base).keyed() == {**base, "table": base, "free": base}
    for name in names:
        changed = outer(**{name: 2}, table={name: 3}, free={name: 4}).keyed()
        assert (changed[name], changed["table"][name], changed["free"]) == (2, 3, {name: 4})


def test_a_later_field_needs_a_default() -> None:
    with pytest.raises(TypeError, match=r"Needy\.added is KEYED_UNLESS_DEFAULT without a default"):

        class Needy(Settings):
            added: int = Field(json_schema_extra=KEYED_UNLESS_DEFAULT)


def test_a_table_of_the_funnel_that_is_off_is_in_the_key() -> None:
    """As it was before; a table that is added later leaves the key when it is off."""
    sources = [{"name": "a", "environment": "python-docs"}]
    off = CorpusConfig.model_validate_json(json.dumps({"sources": sources})).keyed()
    assert off["near"] is None
    assert off["weights"] is None
