"""AGIEval: its single-choice files with four options, as JSON lines, with its own shots."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import (
    AGAIN,
    SHOTS,
    first_rows_note,
    json_rows,
    question,
    rows_at,
    several_right_note,
    text,
    texts,
    with_shots,
)
from bc2.harness.releases.source import ANYWHERE, Layout, Place, Row, Source, Tables

JEC_QA = ("jec-qa-ca", "jec-qa-kd")

#: Not here: the LSAT files and aqua-rat have five options, math and gaokao-mathcloze none;
#: sat-en-without-passage repeats the questions of sat-en.
FOUR_OPTIONS = (
    "gaokao-biology",
    "gaokao-chemistry",
    "gaokao-chinese",
    "gaokao-english",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-mathqa",
    "gaokao-physics",
    *JEC_QA,
    "logiqa-en",
    "logiqa-zh",
    "sat-en",
    "sat-math",
)

_SHOTS_FILE = "few_shot_prompts.csv"
_LETTERS = ("A", "B", "C", "D")
_OWN_LETTER = re.compile(r"\s*[(（]?\s*([A-D])[)）.．、 ]")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    return _tables(place, subsets, "bc2/agieval")


def _read_jec_qa(place: Place, subsets: Sequence[str]) -> Tables:
    return _tables(place, subsets, "bc2/jecqa")


def _tables(place: Place, subsets: Sequence[str], path: str) -> Tables:
    tables = Tables()
    file = _shots_file(place)
    released = _shots(file) if file else {}
    if file:
        tables.files[file.name] = file
    left_out, own_shots, moved = {}, {}, {}
    for name in subsets:
        every = rows_at(tables, place, name, "test", _rows)
        rows = [row for row in every if row["label"]]
        left_out[name] = (len(every) - len(rows), len(every))
        own = released.get(name, [])[:SHOTS]
        own_shots[name] = len(own)
        moved[name] = sum(_put_in_order(row) for row in [*own, *rows])
        shots, rows = with_shots(rows, own, f"{place.root}{name}")
        tables.datasets[path, name] = {"dev": shots, "test": rows}
    tables.notes += several_right_note(left_out)
    if told := [f"{name} {count}" for name, count in moved.items() if count]:
        tables.notes.append(f"options were put into the order of their letters: {', '.join(told)}")
    tables.notes += _shots_note(own_shots) if file else [first_rows_note("each file")]
    return tables


def _shots_note(own: Mapping[str, int]) -> list[str]:
    few = [f"{name} {count}" for name, count in own.items() if count < SHOTS]
    if not few:
        return []
    return [
        f"fewer than {SHOTS} shots of the release have four options and one right answer "
        f"({', '.join(few)}): the first rows of test fill them up and are not scored"
    ]


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("passage", "question", "options", "label")):
        yield _row(row, where)


def _row(row: Row, where: str) -> Row:
    """A row as lm-eval's tasks get it; its label is empty where not exactly one is right."""
    options = texts(row, "options", where)
    row = {"answer": None, **row}
    return {
        "passage": None if row["passage"] is None else text(row, "passage", where),
        "question": question(row, "question", where),
        "options": options,
        "label": _label(row["label"], len(options), where),
        "answer": None if row["answer"] is None else text(row, "answer", where),
    }


def _put_in_order(row: Row) -> bool:
    """Sort options by the letters that they begin with, which labels mean: some are A, C, B, D.

    Returns:
        Whether they stood otherwise.
    """
    options = row["options"]
    letters = [match[1] for one in options if (match := _OWN_LETTER.match(one))]
    if sorted(letters) != [*_LETTERS] or letters == [*_LETTERS]:
        return False
    row["options"] = [option for _, option in sorted(zip(letters, options, strict=True))]
    return True


def _label(value: Any, options: int, where: str) -> str:
    """The one right letter; empty if several or none are, or there are not four options."""
    # Some labels of the release hold punctuation too.
    joined = "".join(map(str, value)) if isinstance(value, list) else str(value)
    letters = re.sub(r"[\s。，、,.]", "", joined)
    if not set(letters) <= set("ABCDE"):
        raise DataError(
            f"the label is {str(value)[:40]!r}, not of the letters {', '.join(_LETTERS)}",
            where=where,
            todo=AGAIN,
        )
    single = len(letters) == 1 and options == len(_LETTERS)
    if single and letters[0] not in _LETTERS:
        raise DataError(f"the label is {letters[0]}, of four options", where=where, todo=AGAIN)
    return letters[0] if single else ""


# -- shots ---------------------------------------------------------------------------------


def _shots_file(place: Place) -> ReleaseFile | None:
    """The file of shots, beside the rows or one folder above, where its authors have it."""
    above = re.sub(r"[^/]+/$", "", place.root)
    return place.listing.get(place.root + _SHOTS_FILE) or place.listing.get(above + _SHOTS_FILE)


def _shots(file: ReleaseFile) -> dict[str, list[Row]]:
    """The shots of each file that have four options and one right answer."""
    records = file.records()
    names = next(records, [""])[1:]
    found: dict[str, list[Row]] = {name: [] for name in names}
    for number, record in enumerate(records, 1):
        if record[0].startswith("sample"):
            for name, cell in zip(names, record[1:], strict=False):
                if name in FOUR_OPTIONS and cell.strip():
                    shot = _shot(cell, f"{file.where}:{number}")
                    found[name] += [shot] if shot["label"] else []
    return found


def _shot(cell: str, where: str) -> Row:
    try:
        row = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError("a shot is no Python literal", where=where, todo=AGAIN) from error
    has = row if isinstance(row, dict) else {}
    if missing := {"passage", "question", "options", "label"} - has.keys():
        raise DataError(f"a shot has no {', '.join(sorted(missing))}", where=where, todo=AGAIN)
    return _row({**row, "options": _split_options(row["options"])}, where)


def _split_options(options: Any) -> Any:
    """Options that stand in one string, as in the shots of geography, one by one."""
    if isinstance(options, list) and len(options) == 1 and isinstance(options[0], str):
        return [one.strip() for one in re.split(r"\s+(?=[B-D][.．])", options[0])]
    return options


_LAYOUT = Layout(ANYWHERE + r"(?P<subset>[a-z-]+)\.jsonl", split="test")

SOURCE = Source(
    name="agieval",
    title="AGIEval",
    layouts=(_LAYOUT,),
    read=_read,
    expected="data/v1/NAME.jsonl and data/few_shot_prompts.csv of AGIEval",
    archives="(?i)agieval",
    subsets=FOUR_OPTIONS,
)

JEC_QA_SOURCE = Source(
    name="jecqa",
    title="JEC-QA",
    layouts=(_LAYOUT,),
    read=_read_jec_qa,
    expected="data/v1/jec-qa-ca.jsonl, jec-qa-kd.jsonl and data/few_shot_prompts.csv of AGIEval",
    archives="(?i)agieval|jec-?qa",
    subsets=JEC_QA,
)
