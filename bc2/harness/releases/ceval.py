"""C-Eval: 52 subjects as CSV, in folders or in the archive of the hub; scored on val."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import (
    csv_rows,
    label,
    question,
    subject_tables,
)
from bc2.harness.releases.source import ANYWHERE, Hub, Layout, Place, Row, Source, Tables, names

SUBJECTS = names(
    """
    accountant advanced_mathematics art_studies basic_medicine business_administration
    chinese_language_and_literature civil_servant clinical_medicine college_chemistry
    college_economics college_physics college_programming computer_architecture
    computer_network discrete_mathematics education_science electrical_engineer
    environmental_impact_assessment_engineer fire_engineer high_school_biology
    high_school_chemistry high_school_chinese high_school_geography high_school_history
    high_school_mathematics high_school_physics high_school_politics
    ideological_and_moral_cultivation law legal_professional logic mao_zedong_thought marxism
    metrology_engineer middle_school_biology middle_school_chemistry middle_school_geography
    middle_school_history middle_school_mathematics middle_school_physics
    middle_school_politics modern_chinese_history operating_system physician plant_protection
    probability_and_statistics professional_tour_guide sports_science tax_accountant
    teacher_qualification urban_and_rural_planner veterinary_medicine
    """
)

#: Files of these names may be MMLU's.
ALSO_MMLU = frozenset(
    names(
        """
        college_chemistry college_physics high_school_biology high_school_chemistry
        high_school_geography high_school_mathematics high_school_physics
        """
    )
)

_HEADER = ("id", "question", "A", "B", "C", "D", "answer")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    return subject_tables(place, subsets, "ceval/ceval-exam", "val", _rows)


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in csv_rows(file, _HEADER, (*_HEADER, "explanation")):
        question(row, "question", where)
        label(row["answer"], ("A", "B", "C", "D"), where)
        yield {column: row[column] for column in _HEADER[1:]}


SOURCE = Source(
    name="ceval",
    title="C-Eval",
    layouts=(
        Layout(ANYWHERE + r"(?P<split>dev|val)/(?P<subset>\w+)_(?P=split)\.csv"),
        Layout(
            r"(?P<root>(?:.*/)?(?!(?:dev|val|test)/)[^/]+/)(?P<subset>\w+?)_(?P<split>dev|val)\.csv"
        ),
    ),
    read=_read,
    expected="ceval-exam.zip, or its dev/SUBJECT_dev.csv and val/SUBJECT_val.csv",
    archives="(?i)c-?eval",
    subsets=SUBJECTS,
    sure=frozenset(SUBJECTS) - ALSO_MMLU,
    hub=Hub("ceval/ceval-exam", ("ceval-exam.zip",)),
)
