"""Weights against plain sums over documents; strata; shares that add up."""

from __future__ import annotations

import json
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.mixture import MAX_BLOCK
from bc2.data.prep.settings import WeightsSettings
from bc2.data.prep.stages.weights import TOTAL, Cell, WeightsStage, name_strata, weigh
from bc2.errors import DataError, RecipeError

BANDS = ((0.0, 0.5), (0.5, 1.0), (0.8, 2.0))
ALL = WeightsSettings(
    sources={"law": 3.0},
    languages={"zh": 0.7},
    quality=BANDS,
    clusters={"1": 0.25},
    min_stratum_bytes=0,
)


@pytest.fixture(scope="module")
def table(records) -> pa.Table:
    rng = np.random.default_rng(1)
    count = 300
    made = records(["x" * int(n) for n in rng.integers(1, 2000, count)])
    sources = rng.choice(["web", "law"], count).tolist()
    langs = [[None, "zh", "en"][n] for n in rng.integers(0, 3, count)]
    made = made.set_column(made.column_names.index("source"), "source", pa.array(sources))
    made = made.set_column(made.column_names.index("lang"), "lang", pa.array(langs))
    scores = [None if x > 0.9 else x for x in rng.random(count).astype(np.float32).tolist()]
    made = made.append_column("quality", pa.array(scores, pa.float32()))
    return made.append_column("cluster", pa.array(rng.integers(0, 3, count), pa.int32()))


def run(run_stage, found: WeightsSettings, *tables: pa.Table) -> tuple[pa.Table, dict]:
    outcomes, facts = run_stage(WeightsStage(found), tables)
    assert all(len(outcome.removed) == 0 for outcome in outcomes)
    return pa.concat_tables(outcome.table for outcome in outcomes), facts


def factor(row: dict) -> float:
    score = row["quality"]
    product = {"law": 3.0}.get(row["source"], 1.0) * {"zh": 0.7}.get(row["lang"], 1.0)
    product *= {1: 0.25}.get(row["cluster"], 1.0)
    if score is None:
        return product
    return product * (0.5 if score < 0.5 else 1.0 if score < np.float32(0.8) else 2.0)


def test_weights_are_bytes_times_factors(table, run_stage):
    found, facts = run(run_stage, ALL, table)
    wanted: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    for row in found.to_pylist():
        wanted[row["stratum"]] += len(row["text"]) * factor(row)
        sizes[row["stratum"]] += len(row["text"])
    total = sum(wanted.values())
    assert facts["weights"].keys() == wanted.keys() == facts["strata"].keys()
    assert sum(facts["weights"].values()) == facts["total"] == TOTAL
    for name, weight in wanted.items():
        assert abs(facts["weights"][name] - weight / total * TOTAL) < 1.01
        assert facts["strata"][name]["bytes"] == sizes[name]
    assert sum(entry["documents"] for entry in facts["strata"].values()) == len(table)
    assert "law.und.c02.qx" in wanted
    assert "web.zh.c02.q2" in wanted


def test_a_stratum_holds_what_its_name_says_and_is_a_name(table, run_stage):
    found, facts = run(run_stage, ALL, table)
    for row in found.to_pylist():
        source, lang, cluster, band = row["stratum"].split(".")
        assert source == row["source"]
        assert lang == (row["lang"] or "und")
        assert int(cluster[1:]) == row["cluster"]
        score = row["quality"]
        assert band == ("qx" if score is None else f"q{0 if score < 0.5 else 1 + (score >= 0.8)}")
        SourceConfig(name=row["stratum"], path="x")
    assert {entry["source"] for entry in facts["strata"].values()} == {"law", "web"}


def test_only_what_is_weighted_makes_strata(table, run_stage):
    found, facts = run(run_stage, WeightsSettings(sources={"law": 2.0}), table)
    assert found["stratum"].to_pylist() == found["source"].to_pylist()
    law, web = (
        sum(len(r["text"]) for r in table.to_pylist() if r["source"] == s) for s in ("law", "web")
    )
    exact = Fraction(2 * law * TOTAL, 2 * law + web)
    assert abs(facts["weights"]["law"] - exact) < 1
    only_bands = WeightsSettings(quality=BANDS, min_stratum_bytes=0)
    assert set(run(run_stage, only_bands, table)[1]["weights"]) == {
        f"{s}.q{q}" for s in ("law", "web") for q in "012x"
    }


def test_parts_make_no_difference(table, run_stage):
    whole, facts = run(run_stage, ALL, table)
    for size in (1, 37):
        tables = [table.slice(i, size) for i in range(0, len(table), size)]
        parts, again = run(run_stage, ALL, *tables, table.slice(0, 0))
        assert again == facts
        assert parts.equals(whole)


@pytest.mark.parametrize(
    ("more", "key", "shares"),
    [
        ({"language_shares": {"ZH": 0.5, "en": 0.5}}, "lang", {"zh": 0.5, "en": 0.5, None: 0}),
        ({"language_shares": {"zh": 0.2, "und": 0.3}}, "lang", {"zh": 0.2, None: 0.3, "en": 0.5}),
        ({"source_shares": {"law": 0.1}}, "source", {"law": 0.1, "web": 0.9}),
    ],
)
def test_shares_are_met_and_inside_them_factors_hold(more, key, shares, table, run_stage, capsys):
    given_settings = ALL.model_copy(update=more)
    found, facts = run(run_stage, given_settings, table)
    sums: dict[str | None, int] = defaultdict(int)
    inside: dict[str, float] = defaultdict(float)
    group_of = {}
    for row in found.to_pylist():
        group_of[row["stratum"]] = row[key]
        inside[row["stratum"]] += len(row["text"]) * factor(row)
    for name, weight in facts["weights"].items():
        sums[group_of[name]] += weight
    for name, share in shares.items():
        assert sums[name] == pytest.approx(share * TOTAL, abs=len(inside))
        mine = [s for s in inside if group_of[s] == name]
        for stratum in mine:
            part = inside[stratum] / sum(inside[s] for s in mine)
            assert facts["weights"][stratum] == pytest.approx(part * share * TOTAL, abs=1.01)
    assert ("never drawn" in capsys.readouterr().err) == (0 in shares.values())


@pytest.mark.parametrize("temperature", [0.0, 0.5, 0.9])
def test_a_temperature_flattens_the_clusters(temperature, table, run_stage):
    found, facts = run(
        run_stage, WeightsSettings(cluster_temperature=temperature, min_stratum_bytes=0), table
    )
    sizes: dict[int, int] = defaultdict(int)
    drawn: dict[int, int] = defaultdict(int)
    strata = {}
    for row in found.to_pylist():
        sizes[row["cluster"]] += len(row["text"])
        strata[row["stratum"]] = row["cluster"]
    for name, weight in facts["weights"].items():
        drawn[strata[name]] += weight
    powers = {cluster: size**temperature for cluster, size in sizes.items()}
    for cluster, power in powers.items():
        share = power / sum(powers.values())
        assert drawn[cluster] / TOTAL == pytest.approx(share, rel=1e-6)


def test_a_score_is_in_the_band_that_it_is_written_as(records, run_stage):
    bands = tuple((n / 10, 1.0) for n in range(10))
    scores = pa.array([n / 10 for n in range(10)] + [1.0, float("nan")], pa.float32())
    table = records([f"t{n}" for n in range(12)]).append_column("quality", scores)
    found, _ = run(run_stage, WeightsSettings(quality=bands, min_stratum_bytes=0), table)
    assert found["stratum"].to_pylist() == [f"s.q{n}" for n in range(10)] + ["s.q9", "s.qx"]


# -- small strata --------------------------------------------------------------------------

cells_st = st.dictionaries(
    st.builds(Cell, st.sampled_from(["a", "b"]), st.just(""), st.integers(0, 9), st.just(-1)),
    st.tuples(st.integers(0, 10**8), st.sampled_from([0, 1, 3])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(cells_st, st.integers(0, 10**7))
def test_small_strata_are_joined_within_their_source(cells, least):
    sizes = {cell: size for cell, (size, _) in cells.items()}
    raw = {cell: Fraction(size * times) for cell, (size, times) in cells.items()}
    total = sum(raw.values()) or Fraction(1)
    weights = {cell: weight / total for cell, weight in raw.items()}
    names = name_strata(sizes, weights, least)
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell, name in names.items():
        groups[name].append(cell)
    drawn = {s: [c for c in cells if c.source == s and weights[c]] for s in "ab"}
    for name, mine in groups.items():
        assert len({cell.source for cell in mine}) == 1
        fine = (
            sum(sizes[c] for c in mine) >= least
            and sum(weights[c] for c in mine) >= Fraction(2, MAX_BLOCK)
        )  # fmt: skip
        source = mine[0].source
        if name.endswith(".rest"):
            assert len(mine) > 1
            assert fine or len(mine) == len(drawn[source])  # all of the source's
        else:
            assert len(mine) == 1
            never = not weights[mine[0]]
            assert fine or never or len(drawn[source]) == 1


def test_the_rest_in_the_facts(table, run_stage):
    found, facts = run(run_stage, ALL.model_copy(update={"min_stratum_bytes": 6000}), table)
    apart, exact = run(run_stage, ALL, table)
    assert any(name.endswith(".rest") for name in facts["weights"])
    assert len(facts["weights"]) < len(exact["weights"])
    assert sum(facts["weights"].values()) == TOTAL
    pairs = set(zip(found["stratum"].to_pylist(), apart["stratum"].to_pylist(), strict=True))
    for name, weight in facts["weights"].items():
        joined = sum(exact["weights"][part] for whole, part in pairs if whole == name)
        assert abs(weight - joined) <= 20
        assert facts["strata"][name]["bytes"] >= 6000


def test_a_name_that_two_sources_would_have():
    cells = [Cell("web", "", 1, -1), Cell("web.c01", "", 2, -1)]
    with pytest.raises(DataError, match=r"the name of source 'web\.c01'"):
        name_strata(dict.fromkeys(cells, 9), dict.fromkeys(cells, Fraction(1, 2)), 0)


# -- invalid settings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sources": {"a": -1.0}}, "cannot be negative"),
        ({"quality": ((0.5, 1.0),)}, "must begin at score 0"),
        ({"quality": ((0.0, 1.0), (0.5, 1.0), (0.5, 2.0))}, "ascending order"),
        ({"quality": ((0.0, -1.0),)}, "cannot be negative"),
        ({"clusters": {"law": 1.0}}, "must be numbers"),
        ({"clusters": {"1": 1.0, "01": 2.0}}, "the number of one cluster"),
        ({"source_shares": {"a": 0.7, "b": 0.4}}, "more than 1"),
        ({"source_shares": {"a": -0.7}}, "cannot be negative"),
        ({"source_shares": {"a": 0.7}, "language_shares": {"zh": 0.1}}, "each fixes"),
        ({"cluster_temperature": 1.5}, "less than or equal to 1"),
    ],
)
def test_impossible_settings(values, says):
    with pytest.raises(ValidationError, match=says):
        WeightsSettings(**values)


def test_shares_of_a_tenth_each_add_up():
    WeightsSettings(source_shares={f"s{n}": 0.1 for n in range(10)})


def test_settings_are_checked_against_the_recipe():
    def recipe(*sources: str, **tables: dict[str, Any]) -> CorpusConfig:
        named = [{"name": name, "path": "text", "lang": "zh_Hans"} for name in sources]
        return CorpusConfig.model_validate_json(json.dumps({"sources": named, **tables}))

    stage = WeightsStage(ALL)
    stage.check_fit(recipe("law", "web", quality={}, clusters={}))
    with pytest.raises(RecipeError, match="did you mean 'laws'"):
        stage.check_fit(recipe("laws", quality={}, clusters={}))
    with pytest.raises(RecipeError, match=r"there cannot be: 2.*from 0 to 1"):
        WeightsStage(ALL.model_copy(update={"clusters": {"1": 2.0, "2": 1.0}})).check_fit(
            recipe("law", quality={}, clusters={"clusters": 2})
        )
    with pytest.raises(RecipeError, match="quality"):
        stage.check_fit(recipe("law", clusters={}))
    with pytest.raises(RecipeError, match="clusters"):
        stage.check_fit(recipe("law", quality={}))


@pytest.mark.parametrize("table", ["languages", "language_shares"])
@pytest.mark.parametrize(
    ("keys", "what", "todo"),
    [
        (["fr"], "no source states: 'fr'", "they state en, en-us, und, zh-hans"),
        (["zh-han"], "no source states: 'zh-han'", "did you mean 'zh-hans'?"),
        (["zh-Hans", "ZH_hans"], "'zh-Hans' and 'ZH_hans' are one language", "leave one"),
        (["en", "EN-us", "zh", "und"], None, ""),
    ],
)
def test_a_weight_for_a_language_that_no_source_has(table, keys, what, todo):
    sources = [SourceConfig(name=f"s{n}", path="x", lang=lang)
               for n, lang in enumerate(["zh_Hans", "en-US", None])]  # fmt: skip
    sources.append(SourceConfig(name="docs", environment="python-docs"))  # English, unsaid
    config = CorpusConfig(sources=tuple(sources))
    stage = WeightsStage(WeightsSettings.model_validate({table: dict.fromkeys(keys, 0.1)}))
    if what is None:
        stage.check_fit(config)
        config = config.model_copy(update={"sources": config.sources[-1:]})
        WeightsStage(WeightsSettings.model_validate({table: {"en": 0.1}})).check_fit(config)
        return
    with pytest.raises(RecipeError, match=what) as caught:
        stage.check_fit(config)
    assert caught.value.where == f"corpus.weights.{table}"
    assert todo in str(caught.value.todo)


def test_a_key_names_every_tag_that_begins_so(records, run_stage):
    langs = {"zh": 2.0, "zh_Hans": 2.0, "ZH-cn": 5.0, "zh-CN-x": 5.0, None: 3.0, "en": 1.0}
    tables = [records(["x" * 100], number, lang) for number, lang in enumerate(langs)]
    factors = {"ZH": 2.0, "zh-cn": 5.0, "unknown": 3.0}
    found, facts = run(run_stage, WeightsSettings(languages=factors, min_stratum_bytes=0), *tables)
    strata = ["zh", "zh-hans", "zh-cn", "zh-cn-x", "und", "en"]
    assert found["stratum"].to_pylist() == [f"s.{name}" for name in strata]
    for name, factor in zip(strata, langs.values(), strict=True):
        assert facts["weights"][f"s.{name}"] == pytest.approx(factor / 18 * TOTAL, abs=1)
    shares = {"zh": 0.5, "zh-CN": 0.2}
    _, facts = run(run_stage, WeightsSettings(language_shares=shares, min_stratum_bytes=0), *tables)
    wanted = {"zh": 0.25, "zh-hans": 0.25, "zh-cn": 0.1, "zh-cn-x": 0.1, "und": 0.15, "en": 0.15}
    for name, share in wanted.items():
        assert facts["weights"][f"s.{name}"] == pytest.approx(share * TOTAL, abs=1)


def test_columns_that_are_not_there(records):
    with pytest.raises(RecipeError, match="quality"):
        WeightsStage(WeightsSettings(quality=BANDS)).keys(records(["x"]))
    with pytest.raises(RecipeError, match="clusters"):
        WeightsStage(WeightsSettings(clusters={"1": 2.0})).keys(records(["x"]))


def test_text_that_is_not_there(records, run_stage):
    with pytest.raises(DataError, match="'zh' has a share"):
        run(run_stage, WeightsSettings(language_shares={"zh": 0.5}), records(["x"], lang="en"))
    with pytest.raises(DataError, match="every stratum has weight 0"):
        run(run_stage, WeightsSettings(sources={"s": 0.0}), records(["x"]))
    with pytest.raises(DataError, match="cannot be part of a name"):
        run(run_stage, WeightsSettings(languages={"zh": 2.0}), records(["x"], lang="zh/tw"))
    found, facts = run(run_stage, ALL.model_copy(update={"quality": (), "clusters": {}}),
                       records([]))  # fmt: skip
    assert len(found) == 0
    assert facts == {"total": TOTAL, "weights": {}, "strata": {}}


def test_nothing_is_weighed_of_nothing():
    assert weigh({}, ALL) == {}
