"""HumanEval's and MBPP's own solutions pass, and their tests fail what is no solution."""

from __future__ import annotations

import ast
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Program, Sandbox

FOLDER = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "bench"
HUMANEVAL = FOLDER / "humaneval" / "HumanEval.jsonl.gz"
MBPP = FOLDER / "mbpp" / "data" / "mbpp.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (HUMANEVAL.exists() and MBPP.exists()), reason=f"needs {HUMANEVAL} and {MBPP}"
    ),
]

LIMITS = Limits(wall_seconds=60, cpu_seconds=60)


def humaneval() -> list[dict[str, Any]]:
    with gzip.open(HUMANEVAL, "rt") as lines:
        return [json.loads(line) for line in lines]


def of_humaneval(problem: dict[str, Any], solution: str) -> Program:
    name = problem["entry_point"]
    return Program(problem["prompt"] + solution, f"{problem['test']}\ncheck({name})\n")


def of_mbpp(problem: dict[str, Any]) -> Program:
    tests = [problem["test_setup_code"], *problem["test_list"], *problem["challenge_test_list"]]
    defined = (ast.FunctionDef, ast.ClassDef)
    names = [n.name for n in ast.parse(problem["code"]).body if isinstance(n, defined)]
    return Program(problem["code"], "\n".join(tests), names)


def not_passed(sandbox: Sandbox, programs: list[Program]) -> dict[int, str]:
    outcomes = sandbox.run_all(programs, workers=2, limits=LIMITS)
    return {i: o.detail for i, o in enumerate(outcomes) if not o.passed}


def test_all_solutions_of_humaneval_pass(sandbox: Sandbox) -> None:
    programs = [of_humaneval(p, p["canonical_solution"]) for p in humaneval()]
    assert len(programs) == 164
    assert not_passed(sandbox, programs) == {}


def test_all_references_of_mbpp_pass(sandbox: Sandbox) -> None:
    programs = [of_mbpp(json.loads(line)) for line in MBPP.read_text().splitlines()]
    assert len(programs) == 974
    assert not_passed(sandbox, programs) == {}


@pytest.mark.parametrize(
    "body",
    ["    return None\n", "    import sys\n    sys.exit(0)\n", "    import os\n    os._exit(0)\n"],
)
def test_no_empty_solution_of_humaneval_passes(sandbox: Sandbox, body: str) -> None:
    programs = [of_humaneval(p, body) for p in humaneval()]
    assert len(not_passed(sandbox, programs)) == 164


def test_an_answer_equal_to_all_passes_nothing(sandbox: Sandbox) -> None:
    yes = """
class Yes:
    def __eq__(self, other): return True
    def __getattr__(self, name): return Yes()
"""
    problems = humaneval()
    programs = [of_humaneval(p, "    return Yes()\n") for p in problems]
    programs = [p._replace(candidate=yes + p.candidate) for p in programs]
    passed = set(range(164)) - set(not_passed(sandbox, programs))
    assert {problems[i]["task_id"] for i in passed} == set()
