"""BIG-Bench Hard: 27 tasks as JSON of its authors, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import json_rows, question, rows_at
from bc2.harness.releases.source import (
    ANYWHERE,
    PARQUET,
    Hub,
    Layout,
    Place,
    Row,
    Source,
    Tables,
    names,
)
from bc2.harness.rows import kind_of

TASKS = names(
    """
    boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages
    formal_fallacies geometric_shapes hyperbaton logical_deduction_five_objects
    logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation
    multistep_arithmetic_two navigate object_counting penguins_in_a_table
    reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
    sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
    tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects
    web_of_lies word_sorting
    """
)


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    for task in subsets:
        rows = rows_at(tables, place, task, "test", _rows)
        tables.datasets["SaylorTwift/bbh", task] = {"test": rows}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    key = "examples" if kind_of(file.name) == ".json" else None
    for where, row in json_rows(file, ("input", "target"), key):
        yield {"input": question(row, "input", where), "target": question(row, "target", where)}


SOURCE = Source(
    name="bbh",
    title="BBH",
    layouts=(
        Layout(ANYWHERE + r"(?P<subset>\w+)\.json", split="test"),
        Layout(ANYWHERE + rf"(?P<subset>\w+)/(?P<split>test){PARQUET}"),
    ),
    read=_read,
    expected="bbh/TASK.json",
    archives="(?i)bbh|big-?bench",
    subsets=TASKS,
    hub=Hub("SaylorTwift/bbh", ("{subset}/test-*.parquet",)),
)
