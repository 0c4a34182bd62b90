"""CMMLU: 67 subjects as CSV, in folders or in the archive of the hub."""

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
    agronomy anatomy ancient_chinese arts astronomy business_ethics chinese_civil_service_exam
    chinese_driving_rule chinese_food_culture chinese_foreign_policy chinese_history
    chinese_literature chinese_teacher_qualification clinical_knowledge
    college_actuarial_science college_education college_engineering_hydrology college_law
    college_mathematics college_medical_statistics college_medicine computer_science
    computer_security conceptual_physics construction_project_management economics education
    electrical_engineering elementary_chinese elementary_commonsense
    elementary_information_and_technology elementary_mathematics ethnology food_science
    genetics global_facts high_school_biology high_school_chemistry high_school_geography
    high_school_mathematics high_school_physics high_school_politics human_sexuality
    international_law journalism jurisprudence legal_and_moral_basis logical machine_learning
    management marketing marxist_theory modern_chinese nutrition philosophy
    professional_accounting professional_law professional_medicine professional_psychology
    public_relations security_study sociology sports_science traditional_chinese_medicine
    virology world_history world_religions
    """
)

_HEADER = ("", "Question", "A", "B", "C", "D", "Answer")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    return subject_tables(place, subsets, "haonan-li/cmmlu", "test", _rows)


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in csv_rows(file, _HEADER):
        question(row, "Question", where)
        label(row["Answer"], ("A", "B", "C", "D"), where)
        yield {column: row[column] for column in _HEADER[1:]}


SOURCE = Source(
    name="cmmlu",
    title="CMMLU",
    layouts=(Layout(ANYWHERE + r"(?P<split>dev|test)/(?P<subset>\w+)\.csv"),),
    read=_read,
    expected="cmmlu_v1_0_1.zip, or its dev/SUBJECT.csv and test/SUBJECT.csv",
    archives="(?i)cmmlu",
    subsets=SUBJECTS,
    hub=Hub("haonan-li/cmmlu", ("cmmlu_v1_0_1.zip",)),
)
