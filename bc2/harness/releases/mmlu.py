"""MMLU: 57 subjects as CSV with or without a header, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.ceval import ALSO_MMLU
from bc2.harness.releases.checks import (
    csv_rows,
    foreign,
    json_rows,
    label,
    question,
    subject_tables,
    texts,
)
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

SUBJECTS = names(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology
    high_school_statistics high_school_us_history high_school_world_history human_aging
    human_sexuality international_law jurisprudence logical_fallacies machine_learning
    management marketing medical_genetics miscellaneous moral_disputes moral_scenarios
    nutrition philosophy prehistory professional_accounting professional_law
    professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
    """
)

_HEADER = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
_LETTERS = ("A", "B", "C", "D")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    return subject_tables(place, subsets, "cais/mmlu", "test", _rows)


def _rows(file: ReleaseFile) -> Iterator[Row]:
    if kind_of(file.name) == ".parquet":
        return _hub_rows(file)
    first = next(file.records(), [])
    if first == list(_HEADER):
        return _rows_with_header(file)
    if len(first) == len(_HEADER) and first[-1] in _LETTERS:
        return _rows_without_header(file)
    raise foreign(file, first, [_HEADER, ("a question", *_LETTERS, "a letter")])


def _rows_with_header(file: ReleaseFile) -> Iterator[Row]:
    for where, row in csv_rows(file, _HEADER):
        yield {
            "question": question(row, "question", where),
            "choices": [row[f"choice{index}"] for index in range(4)],
            "answer": label(row["answer"], ("0", "1", "2", "3"), where),
        }


def _rows_without_header(file: ReleaseFile) -> Iterator[Row]:
    """The authors' own files: a question, four choices and a letter."""
    for number, record in enumerate(file.records(), 1):
        where = f"{file.where}:{number}"
        if len(record) != len(_HEADER):
            raise foreign(file, record, [("a question", *_LETTERS, "a letter")])
        yield {
            "question": question({"question": record[0]}, "question", where),
            "choices": record[1:5],
            "answer": label(record[5], _LETTERS, where),
        }


def _hub_rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("question", "choices", "answer")):
        choices = texts(row, "choices", where)
        yield {
            "question": question(row, "question", where),
            "choices": choices,
            "answer": label(row["answer"], range(len(choices)), where),
        }


SOURCE = Source(
    name="mmlu",
    title="MMLU",
    layouts=(
        Layout(ANYWHERE + r"(?P<split>dev|test)/(?P<subset>\w+)_(?P=split)\.csv"),
        Layout(ANYWHERE + rf"(?P<subset>\w+)/(?P<split>dev|test){PARQUET}"),
    ),
    read=_read,
    expected="dev/SUBJECT_dev.csv and test/SUBJECT_test.csv, of data.tar unpacked",
    archives="(?i)mmlu",
    subsets=SUBJECTS,
    sure=frozenset(SUBJECTS) - ALSO_MMLU,
    hub=Hub("cais/mmlu", ("{subset}/dev-*.parquet", "{subset}/test-*.parquet")),
)
