"""Releases of every benchmark with a few made rows each, laid out and written as the real ones.

``import made_releases`` from any test; `write_releases` fills a folder for ``--data``. Questions
are about small sums: each has one right answer, and no row is of a real benchmark. Subjects have
five rows for shots and two that are scored; single sets about ten.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bc2.harness.releases import agieval, bbh, ceval, cmmlu, gaokao, mmlu

SHOTS, SCORED = 5, 2

LETTERS = "ABCDE"


class Sum(NamedTuple):
    """A question about a sum, with options of which one is right."""

    a: int
    b: int
    options: list[str]
    right: int

    @property
    def english(self) -> str:
        return f"Mira has {self.a} stones and finds {self.b} more. How many has she now?"

    @property
    def chinese(self) -> str:
        return f"小林有{self.a}颗石子，又捡到{self.b}颗，现在一共有多少颗？"

    @property
    def letter(self) -> str:
        return LETTERS[self.right]


def made(number: int, options: int = 4) -> Sum:
    """The question of a number; other numbers below 10,000 give others."""
    a, b = number % 97 + 3, number // 97 + 2
    right = (number * 7 + number // 5) % options
    return Sum(a, b, [str(a + b + 2 * (index - right)) for index in range(options)], right)


def write_releases(folder: Path, sources: Collection[str] | None = None) -> None:
    """Write the releases of all sources, or of some, below a folder."""
    for write in {_WRITERS[name] for name in (_WRITERS if sources is None else sources)}:
        write(folder)


# -- subjects ------------------------------------------------------------------------------


def _of_subject(index: int, count: int) -> list[Sum]:
    return [made(index * 11 + row) for row in range(count)]


def _write_mmlu(folder: Path) -> None:
    header = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
    for index, subject in enumerate(mmlu.SUBJECTS):
        rows = [[one.english, *one.options, one.right] for one in _of_subject(index, 7)]
        _write_csv(folder / f"mmlu/data/dev/{subject}_dev.csv", [header, *rows[:SHOTS]])
        _write_csv(folder / f"mmlu/data/test/{subject}_test.csv", [header, *rows[SHOTS:]])


def _write_cmmlu(folder: Path) -> None:
    write_cmmlu_zip(folder / "cmmlu" / "cmmlu_v1_0_1.zip")


def write_cmmlu_zip(path: Path) -> None:
    """CMMLU as the hub has it: one archive."""
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, subject in enumerate(cmmlu.SUBJECTS):
            rows: list[list[Any]] = [
                [one.chinese, *one.options, one.letter] for one in _of_subject(index + 100, 7)
            ]
            for split, some in (("dev", rows[:SHOTS]), ("test", rows[SHOTS:])):
                numbered = [[number, *row] for number, row in enumerate(some)]
                archive.writestr(f"{split}/{subject}.csv", csv_text([header, *numbered]))


def _write_ceval(folder: Path) -> None:
    """Only val, as it is often passed on: its first rows become shots."""
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    for index, subject in enumerate(ceval.SUBJECTS):
        rows = [
            [number, one.chinese, *one.options, one.letter]
            for number, one in enumerate(_of_subject(index + 200, SHOTS + SCORED))
        ]
        _write_csv(folder / f"ceval/val/{subject}_val.csv", [header, *rows])


def _write_bbh(folder: Path) -> None:
    for index, task in enumerate(bbh.TASKS):
        examples = [
            {
                "input": f"{one.english}\nOptions:\n"
                + "\n".join(
                    f"({letter}) {option}"
                    for letter, option in zip(LETTERS, one.options, strict=False)
                ),
                "target": f"({one.letter})",
            }
            for one in _of_subject(index + 300, 3)
        ]
        _write_json(folder / f"bbh/{task}.json", {"canary": "made", "examples": examples})


def _write_agieval(folder: Path) -> None:
    data = folder / "agieval" / "data"
    every = [*agieval.FOUR_OPTIONS, "lsat-ar"]
    for index, name in enumerate(every):
        rows = [_agieval_row(name, one) for one in _of_subject(index + 400, 6)]
        if name in agieval.JEC_QA:
            rows.append({**rows[0], "question": "下列哪些是偶数？", "label": ["A", "C"]})
        _write_lines(data / "v1" / f"{name}.jsonl", rows)
    table = [["", *every]]
    for number in range(3):
        shots = [_agieval_row(name, made(9000 + number)) for name in every]
        table += [[f"sample {number + 1}", *map(str, shots)]]
        table += [[f"explanation {number + 1}", *("A sum." for _ in every)]]
    _write_csv(data / "few_shot_prompts.csv", table)


def _agieval_row(name: str, one: Sum) -> dict[str, Any]:
    english = name in ("logiqa-en", "sat-en", "sat-math", "gaokao-english", "lsat-ar")
    return {
        "passage": "Mira counts stones." if name == "sat-en" else None,
        "question": one.english if english else one.chinese,
        "options": [
            f"({letter}){option}" for letter, option in zip("ABCD", one.options, strict=True)
        ],
        "label": [one.letter] if name in agieval.JEC_QA else one.letter,
        "answer": None,
        "other": None,
    }


def _write_gaokao(folder: Path) -> None:
    data = folder / "gaokao_bench" / "Data" / "Objective_Questions"
    for index, name in enumerate(gaokao.FILES):
        rows = [
            {
                "year": "2022",
                "question": f"{number + 1}. {one.chinese}（ ）\n{_marked(one)}\n",
                "answer": [one.letter],
                "index": number,
                "score": 5,
            }
            for number, one in enumerate(_of_subject(index + 500, SHOTS + SCORED))
        ]
        if name == "Physics":
            rows.append({**rows[0], "answer": ["AB"], "index": len(rows)})
        _write_json(data / f"2010-2022_{name}_MCQs.json", {"keywords": name, "example": rows})


def _marked(one: Sum) -> str:
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, one.options, strict=False)
    )


# -- single sets ---------------------------------------------------------------------------


def _write_gsm8k(folder: Path) -> None:
    for split, first in (("train", 6000), ("test", 6100)):
        rows = [
            {
                "question": one.english,
                "answer": f"She has {one.a} + {one.b} = <<{one.a}+{one.b}={one.a + one.b}>>"
                f"{one.a + one.b} stones.\n#### {one.a + one.b}",
            }
            for one in map(made, range(first, first + 10))
        ]
        _write_lines(folder / f"gsm8k/{split}.jsonl", rows)


def _write_humaneval(folder: Path) -> None:
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f"def add_{number}(x: int) -> int:\n"
            f'    """Return x plus {number}.\n    >>> add_{number}(1)\n    {number + 1}\n    """\n',
            "entry_point": f"add_{number}",
            "canonical_solution": f"    return x + {number}\n",
            "test": "def check(candidate):\n"
            f"    assert candidate(1) == {number + 1}\n    assert candidate(-4) == {number - 4}\n",
        }
        for number in range(10)
    ]
    path = folder / "humaneval" / "HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json_lines(rows), mtime=0))


def _write_mbpp(folder: Path) -> None:
    """Ten rows of the split test, and as many as shots need of the others."""
    rows = [
        {
            "text": f"Write a function times_{number} that multiplies a number by {number}.",
            "code": f"def times_{number}(x):\r\n  return x * {number}",
            "task_id": number,
            "test_setup_code": "",
            "test_list": [f"assert times_{number}({x}) == {x * number}" for x in (1, 3, -2)],
            "challenge_test_list": [],
        }
        for number in [*range(1, 11), *range(11, 21), 511, 512, 601, 602]
    ]
    _write_lines(folder / "mbpp" / "mbpp.jsonl", rows)


def _write_medqa(folder: Path) -> None:
    rows = [
        {
            "question": one.english,
            "answer": one.options[one.right],
            "options": dict(zip(LETTERS, one.options, strict=True)),
            "meta_info": "step1",
            "answer_idx": one.letter,
        }
        for one in (made(number, 5) for number in range(7000, 7010))
    ]
    _write_lines(folder / "medagents/data/medqa_5options/test.jsonl", rows)


def _write_medmcqa(folder: Path) -> None:
    rows = [
        {
            "question": one.english,
            "realidx": f"made-{number}",
            "options": dict(zip("ABCD", one.options, strict=True)),
            "answer_idx": one.letter,
            "answer": one.options[one.right],
        }
        for number, one in enumerate(map(made, range(7100, 7110)))
    ]
    _write_lines(folder / "medagents/data/medmcqa/test.jsonl", rows)


_WRITERS: dict[str, Callable[[Path], None]] = {
    "mmlu": _write_mmlu,
    "cmmlu": _write_cmmlu,
    "ceval": _write_ceval,
    "gsm8k": _write_gsm8k,
    "humaneval": _write_humaneval,
    "mbpp": _write_mbpp,
    "bbh": _write_bbh,
    "agieval": _write_agieval,
    "jecqa": _write_agieval,
    "gaokao": _write_gaokao,
    "medqa": _write_medqa,
    "medmcqa": _write_medmcqa,
}


# -- files ---------------------------------------------------------------------------------


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def json_lines(rows: Sequence[Any]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(csv_text(rows).encode())


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode())


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(rows))
