"""Suites on rows that are given: every prompt is lm-eval's own, made from the same rows."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets as hub
import huggingface_hub
import lm_eval.tasks
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from bc2.errors import DataError, UsageError
from bc2.harness import bound_tasks
from bc2.harness.load import load_suite
from bc2.harness.questions import questions
from bc2.harness.suites import SUITES, Suite, suite_of

LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


# -- rows ----------------------------------------------------------------------------------


_WORDS = ["alpha", "磁场", "{braces}", "法律", "“quoted”", "\\frac{1}{2}", "100%", "beta"]


def _words(key: object, count: int = 6) -> str:
    rng = random.Random(repr(key))
    return " ".join(rng.choices(_WORDS, k=count))


def _four(key: tuple[object, ...]) -> list[str]:
    return [_words((*key, letter), 2) for letter in "ABCD"]


def _mmlu(key):
    return {"question": f" {_words(key)}?\n", "choices": _four(key), "answer": key[-1] % 4}


def _cmmlu(key):
    return {
        "Question": _words(key),
        **dict(zip("ABCD", _four(key), strict=True)),
        "Answer": "ABCD"[key[-1] % 4],
    }


def _ceval(key):
    row = {"question": _words(key), **dict(zip("ABCD", _four(key), strict=True))}
    return {"id": key[-1], **row, "answer": "DCBA"[key[-1] % 4], "explanation": ""}


def _agieval(key):
    marks = ["(A)", "(B)", "C．", "  D. "]
    return {
        "passage": None if key[-1] % 2 else _words((*key, "passage"), 12),
        "question": _words(key),
        "options": [mark + text for mark, text in zip(marks, _four(key), strict=True)],
        "label": "BCDA"[key[-1] % 4],
        "answer": None,
    }


def _gaokao(key):
    lines = [f"{letter}．{text}" for letter, text in zip("ABCD", _four(key), strict=True)]
    return {
        "question": "\n".join([f"1．{_words(key)}（ ）", *lines, ""]),
        "answer": "CDAB"[key[-1] % 4],
    }


def _medqa(key):
    options = {letter: _words((*key, letter), 2) for letter in "ABCDE"}
    return {"question": _words(key), "options": options, "answer_idx": "EDCBA"[key[-1] % 5]}


def _medmcqa(key):
    options = dict(zip(("opa", "opb", "opc", "opd"), _four(key), strict=True))
    return {"question": _words(key), **options, "cop": key[-1] % 4}


def _bbh(key):
    return {"input": _words(key), "target": "Yes"}


def _gsm8k(key):
    return {"question": _words(key), "answer": f"{_words((key, 'why'))}\n#### {key[-1]}"}


def _humaneval(key):
    return {
        "task_id": f"HumanEval/{key[-1]}",
        "prompt": f'def f{key[-1]}(x):\n    """{_words(key)}"""\n',
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        "entry_point": f"f{key[-1]}",
    }


def _mbpp(key):
    number = key[-1] + (1 if key[-2] == "prompt" else 11)
    return {
        "task_id": number,
        "text": _words(key),
        "code": f"def f{number}(x):\r\n  return x",
        "test_list": [f"assert f{number}({i}) == {i}" for i in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def _eus_exams(key):
    return {"question": _words(key), "candidates": _four(key), "answer": key[-1] % 4}


MAKERS = {
    "HiTZ/EusExams": (_eus_exams, ("test",)),
    "cais/mmlu": (_mmlu, ("dev", "test")),
    "haonan-li/cmmlu": (_cmmlu, ("dev", "test")),
    "ceval/ceval-exam": (_ceval, ("dev", "val")),
    "bc2/agieval": (_agieval, ("dev", "test")),
    "bc2/jecqa": (_agieval, ("dev", "test")),
    "bc2/gaokao": (_gaokao, ("dev", "test")),
    "bc2/medqa": (_medqa, ("dev", "test")),
    "openlifescienceai/medmcqa": (_medmcqa, ("train", "validation")),
    "SaylorTwift/bbh": (_bbh, ("test",)),
    "openai/gsm8k": (_gsm8k, ("train", "test")),
    "openai/openai_humaneval": (_humaneval, ("test",)),
    "google-research-datasets/mbpp": (_mbpp, ("prompt", "test")),
}


class Made(Mapping):
    """Rows for any dataset of `MAKERS`, whatever its subset: few scored, some for shots."""

    def __init__(self, scored: int = 3, shots: int = 8):
        self.counts = {True: scored, False: shots}

    def __getitem__(self, key):
        maker, splits = MAKERS[key[0]]
        return {
            split: [maker((*key, split, i)) for i in range(self.counts[split == splits[-1]])]
            for split in splits
        }

    def __iter__(self):
        return iter(MAKERS)

    def __len__(self):
        return len(MAKERS)


@pytest.fixture
def lm_evals(monkeypatch):
    """lm-eval by itself: its own manager, its `datasets.load_dataset` answered with made rows."""

    def load_dataset(path, name=None, **_):
        rows = Made()[path, name]
        return hub.DatasetDict({k: hub.Dataset.from_list(v) for k, v in rows.items()})

    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", load_dataset)
    return lambda folder: TaskManager(
        include_path=str(LM_EVAL_TASKS / folder), include_defaults=False
    )


def asked(task) -> list[tuple[object, ...]]:
    return [
        (one.request_type, one.arguments, one.idx, one.metadata)
        for question in questions(task)
        for one in question.requests
    ]


# -- as lm-eval ----------------------------------------------------------------------------


class Recorder(LM):
    """A model that keeps what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def loglikelihood(self, requests):
        self.asked += requests
        return [(-1.0 * one.idx, False) for one in requests]

    def generate_until(self, requests):
        self.asked += requests
        return ["#### 1"] * len(requests)

    def loglikelihood_rolling(self, requests):
        raise AssertionError("not asked here")


@pytest.mark.parametrize(
    ("name", "folder", "shots", "tasks"),
    [
        ("mmlu", "mmlu/default", None, ["mmlu_anatomy", "mmlu_prehistory"]),
        ("mmlu", "mmlu/default", 2, ["mmlu_anatomy"]),
        ("cmmlu", "cmmlu", None, ["cmmlu_agronomy", "cmmlu_virology"]),
        ("ceval", "ceval", None, ["ceval-valid_law"]),
        ("medmcqa", "medmcqa", None, ["medmcqa"]),
        ("gsm8k", "gsm8k", None, ["gsm8k"]),
        ("gsm8k", "gsm8k", 8, ["gsm8k"]),
        ("bbh", "bbh", None, ["bbh_cot_fewshot_navigate", "bbh_cot_fewshot_word_sorting"]),
        ("bbh", "bbh", 1, ["bbh_cot_fewshot_snarks"]),
    ],
)
def test_prompts_are_those_of_simple_evaluate(name, folder, shots, tasks, lm_evals, monkeypatch):
    """What lm-eval's whole evaluation asks a model, with ``num_fewshot``, is what is asked here."""
    wanted = SUITES[name].shots if shots is None else shots
    model = Recorder()
    lm_eval.simple_evaluate(
        model, tasks=tasks, num_fewshot=wanted, task_manager=lm_evals(folder),
        bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", None)
    loaded = load_suite(SUITES[name], Made(), shots=shots, only=tasks)
    theirs: dict[str, list[Any]] = {}
    for one in model.asked:
        theirs.setdefault(one.metadata[0], []).append(
            (one.request_type, one.arguments, one.idx, one.metadata)
        )
    for asked_of_one in theirs.values():  # lm-eval asks in the order of length
        asked_of_one.sort(key=lambda one: (one[3][1], one[2]))
    assert {name: asked(task) for name, task in loaded.tasks.items()} == theirs


def test_the_seed_chooses_the_shots(lm_evals):
    theirs = []
    for seed in (1234, 7):
        task = lm_evals("gsm8k").load("gsm8k")["tasks"]["gsm8k"]
        task.set_config(key="num_fewshot", value=4)
        task.set_fewshot_seed(seed=seed)
        task.build_all_requests()
        theirs.append([one.arguments for one in task.instances])
    ours = [
        [one[1] for one in asked(load_suite(SUITES["gsm8k"], Made(), seed=seed).tasks["gsm8k"])]
        for seed in (1234, 7)
    ]
    assert ours == theirs
    assert ours[0] != ours[1]


def test_a_shown_row_does_not_become_another(lm_evals):
    """Shots are kept by row, also while rows that are asked come and go."""
    task = load_suite(SUITES["medmcqa"], Made(scored=200, shots=20), shots=3).tasks["medmcqa"]
    prompts = [one.requests[0].arguments[0] for one in questions(task)]
    rows = Made(scored=200, shots=20)["openlifescienceai/medmcqa", None]
    shown = {row["question"]: "ABCD"[row["cop"]] for row in rows["train"]}
    for prompt in prompts:
        parts = prompt.split("\n\n")
        assert len(parts) == 4
        for part in parts[:3]:
            asked_for = part.split("\n")[0].removeprefix("Question: ")
            assert part.endswith(f"Answer: {shown[asked_for]}")


# -- every suite ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_makes_prompts_from_its_rows_alone(name, capfd):
    suite = SUITES[name]
    loaded = load_suite(suite, Made())
    assert len(loaded.tasks) == COUNTS.get(name, 1)
    assert set(loaded.groups) >= ({suite.task} if len(loaded.tasks) > 1 else set())
    first = next(iter(loaded.tasks.values()))
    made = list(questions(first))
    assert [one.doc_id for one in made] == [0, 1, 2]
    choices = 0 if suite.chance is None else round(1 / suite.chance)
    assert {len(one.requests) for one in made} == {choices or 1}
    metric, _, filters = str(suite.metric).partition(",")
    for task in loaded.tasks.values():
        assert task.config.num_fewshot == suite.shots
        assert metric in task.aggregation()
        assert filters in {one.name for one in task._filters}
        assert (task.config.test_split or task.config.validation_split) == suite.split
    assert bool(first.config.unsafe_code) is suite.runs_code
    assert capfd.readouterr() == ("", "")


COUNTS = {"mmlu": 57, "cmmlu": 67, "ceval": 52, "agieval": 14, "gaokao": 9, "jecqa": 2, "bbh": 27}

ZH_SHOT = """\
以下是关于高考生物的单项选择题，请直接给出正确答案的选项。

{passage}
{question}
A. {a}
B. {b}
C. {c}
D. {d}
答案： B

"""


def test_own_prompts_are_laid_out_as_lm_evals():
    """AGIEval as lm-eval's cmmlu, without the letters that its options begin with."""
    task = load_suite(SUITES["agieval"], Made(), only=["bc2_agieval_gaokao_biology"])
    (question, *_) = questions(task.tasks["bc2_agieval_gaokao_biology"])
    prompt = question.requests[0].arguments[0]
    shot = Made()["bc2/agieval", "gaokao-biology"]["dev"][0]
    texts = [option[3:].strip() for option in [*shot["options"][:2], "   "]][:2]
    texts += [shot["options"][2][2:].strip(), shot["options"][3].strip()[2:].strip()]
    assert prompt.startswith(ZH_SHOT.format(**shot, **dict(zip("abcd", texts, strict=True))))
    assert prompt.endswith("答案：")
    assert prompt.count("答案：") == 6
    assert [one.arguments[1] for one in question.requests] == [" A", " B", " C", " D"]


def test_own_prompts_of_other_suites():
    prompts = {}
    for name in ("gaokao", "medqa", "jecqa"):
        loaded = load_suite(SUITES[name], Made(), shots=1)
        task = next(iter(loaded.tasks.values()))
        question = next(iter(questions(task)))
        prompts[name] = question.requests[0].arguments[0]
        assert task.doc_to_target(question.doc) == {"gaokao": 2, "medqa": 4, "jecqa": 1}[name]
    shot = Made()["bc2/gaokao", "english"]["dev"][0]
    head = "以下是关于高考英语的单项选择题，请直接给出正确答案的选项。\n\n"
    assert prompts["gaokao"].startswith(f"{head}{shot['question'].strip()}\n答案： C\n\n1．")
    shot = Made()["bc2/medqa", None]["dev"][0]
    lines = "".join(f"{letter}. {text}\n" for letter, text in shot["options"].items())
    assert prompts["medqa"].startswith(
        f"Question: {shot['question']}\n{lines}Answer: E\n\nQuestion: "
    )
    assert "法律案例分析" in prompts["jecqa"]


# -- what is missing or wrong --------------------------------------------------------------


class Altered(Made):
    """Made rows with one thing changed in every dataset."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __getitem__(self, key):
        rows = super().__getitem__(key)
        self.change(rows)
        return rows


@pytest.mark.parametrize(
    ("name", "shots", "datasets", "message"),
    [
        ("medqa", 9, Made(), r"bc2_medqa has 8 rows for shots, 9 were asked for"),
        ("bbh", 4, Made(), r"_boolean_expressions has 3 rows for shots, 4 were asked for"),
        ("mbpp", 4, Made(), r"bc2_mbpp has 3 rows for shots, 4 were asked for"),
        ("medqa", 5, Altered(lambda rows: rows.pop("dev")), "has 0 rows for shots"),
        ("medqa", 0, Altered(lambda rows: rows.pop("test")), "bc2_medqa has no rows to score"),
        ("medqa", 0, Altered(lambda rows: rows["test"].clear()), "no rows to score"),
        ("mmlu", 5, {}, r"no rows for mmlu_\w+ \(cais/mmlu \w+\); give the whole release"),
        (
            "medqa",
            0,
            Altered(lambda rows: rows["test"][0].update(answer_idx="F")),
            "cannot build lm-eval's task 'bc2_medqa': 'F' is not in list",
        ),
        (
            "humaneval",
            0,
            Altered(lambda rows: [row.pop("prompt") for row in rows["test"]]),
            "cannot build lm-eval's task 'bc2_humaneval': 'prompt' is undefined",
        ),
        ("gaokao", 5, None, "is on no hub that lm-eval reads.*--data"),
        ("mmlu", 5, None, "cannot build lm-eval's task 'mmlu_.*check the network, or give"),
    ],
)
def test_missing_and_wrong_rows(name, shots, datasets, message):
    with pytest.raises(DataError, match=message):
        load_suite(SUITES[name], datasets, shots=shots)


def test_a_row_that_is_scored_is_no_shot_of_its_own(lm_evals):
    """A task that draws its shots from the rows that it scores."""
    name = "eus_exams_eu_opeosakiadmineu"
    suite = Suite(name, name, None, name, None, None)
    task = load_suite(suite, Made(), shots=2).tasks[name]
    reference = lm_evals("eus_exams").load(name)["tasks"][name]
    reference.set_config(key="num_fewshot", value=2)
    reference.set_fewshot_seed(seed=1234)
    reference.build_all_requests()
    assert [one[1] for one in asked(task)] == [one.arguments for one in reference.instances]
    with pytest.raises(DataError, match=f"{name} has 2 rows for shots, 3 were asked for"):
        load_suite(suite, Made(), shots=3)


@pytest.mark.parametrize(
    ("change", "row"),
    [(lambda row: row.update(answer_idx="F"), 2), (lambda row: row.update(answer_idx=None), 1)],
)
def test_a_bad_row_is_named(change, row):
    datasets = Altered(lambda rows: change(rows["test"][row]))
    task = load_suite(SUITES["medqa"], datasets).tasks["bc2_medqa"]
    with pytest.raises(DataError, match=rf"cannot make a question of this row.*bc2_medqa:{row}"):
        list(questions(task))


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_is_named(label):
    """lm-eval takes it for a wrong answer, and -1 for the last choice."""
    datasets = Altered(lambda rows: rows["validation"][1].update(cop=label))
    task = load_suite(SUITES["medmcqa"], datasets).tasks["medmcqa"]
    with pytest.raises(DataError, match=rf"the answer is {label}, of 4 choices \(medmcqa:1\)"):
        list(questions(task))


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    constants = "huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"
    for name in constants:
        monkeypatch.setattr(name, False)
    bound_tasks._hub_answers.cache_clear()
    start = time.monotonic()
    with pytest.raises(DataError, match="Couldn't reach 'openai/gsm8k' on the Hub"):
        load_suite(SUITES["gsm8k"], None)
    assert time.monotonic() - start < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not hub.config.HF_HUB_OFFLINE
    bound_tasks._hub_answers.cache_clear()


QUIET = """
from bc2.harness.load import load_suite
from bc2.harness.questions import questions
from bc2.harness.suites import SUITES
shots = [{"task_id": i, "text": "?", "code": "x", "test_list": ["1"] * 3} for i in range(9)]
rows = {"prompt": shots, "test": shots}
suite = load_suite(SUITES["mbpp"], {("google-research-datasets/mbpp", "full"): rows})
assert len(list(questions(suite.tasks["bc2_mbpp"]))) == 9
row = {"question": "?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 1}
rows = {"train": [row] * 5, "validation": [row]}
suite = load_suite(SUITES["medmcqa"], {("openlifescienceai/medmcqa", None): rows})
scores = suite.tasks["medmcqa"].process_results({**row, "cop": 7}, [(-1.0, False)] * 4)
assert scores["acc"] == 0
"""


def test_lm_eval_prints_nothing():
    """In a process of its own, because pytest takes the log. There are a bar and a warning."""
    run = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_tasks_that_cannot_be_evaluated_are_refused():
    for name, message in [
        ("humaneval", "outside of bc2's sandbox.*--bench humaneval or mbpp"),
        ("mbpp_plus", "outside of bc2's sandbox"),
        ("mmmu_val_accounting", "asks about images or sound"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_suite(Suite(name, name, None, name, None, None), None)
    with pytest.raises(UsageError, match=r"is a task without shots, 3 were asked for \(--shots\)"):
        load_suite(SUITES["humaneval"], Made(), shots=3)


def test_some_tasks_of_a_suite_keep_their_groups():
    only = ["mmlu_anatomy", "mmlu_world_religions"]
    loaded = load_suite(SUITES["mmlu"], Made(), only=only)
    assert sorted(loaded.tasks) == only
    assert loaded.group_map == {
        "mmlu": ["mmlu_stem", "mmlu_humanities"],
        "mmlu_stem": ["mmlu_anatomy"],
        "mmlu_humanities": ["mmlu_world_religions"],
    }
    with pytest.raises(UsageError, match=r"MMLU has no task 'mmlu_anatomi'.*'mmlu_anatomy'"):
        load_suite(SUITES["mmlu"], Made(), only=["mmlu_anatomi"])
    assert len(load_suite(SUITES["mmlu"], Made()).tasks) == 57  # nothing was left behind


def test_a_task_of_lm_eval_has_its_own_shots_and_the_suites_rows():
    suite = suite_of("bbh_cot_fewshot_navigate")
    assert (suite.source, suite.shots) == ("bbh", None)
    task = load_suite(suite, Made()).tasks["bbh_cot_fewshot_navigate"]
    assert task.config.num_fewshot == 3
    tag = load_suite(suite_of("mmlu_stem_tasks"), Made())
    assert tag.groups == {}
    assert len(tag.tasks) == 19
    assert {task.config.num_fewshot for task in tag.tasks.values()} == {0}


def test_a_limit_takes_the_first_questions():
    task = load_suite(SUITES["gsm8k"], Made()).tasks["gsm8k"]
    some = [one.requests[0].arguments for one in questions(task, limit=2)]
    task = load_suite(SUITES["gsm8k"], Made()).tasks["gsm8k"]
    assert some == [one[1] for one in asked(task)][:2]
