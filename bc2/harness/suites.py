"""The benchmarks of the Baichuan 2 report by name: task of lm-eval, shots, and what counts.

Nothing here imports lm-eval; only a name that is no suite is looked up in its index.
"""

from __future__ import annotations

from dataclasses import dataclass

from bc2.errors import UsageError, nearest


@dataclass(frozen=True)
class Suite:
    """What ``--bench NAME`` evaluates."""

    name: str
    title: str
    source: str | None
    """Of the release that holds its rows; None: lm-eval's own data, from the hub."""
    task: str
    """lm-eval's task or group, or one of `tasks/` if it begins with ``bc2_``."""
    shots: int | None
    """As in the report; None: the task's own."""
    metric: str | None
    """The headline, as lm-eval writes it: ``METRIC,FILTER``; None: the first of the task."""
    chance: float | None = None
    """Accuracy of a blind guess; None where there is nothing to guess from."""
    runs_code: bool = False
    """Whether answers are programs, which are run to be judged."""
    clustered: bool = False
    """Whether the standard error is clustered by subject."""
    split: str = "test"
    """Of the release: what is scored."""
    differs: str = "nothing known"
    """What is not as in the report, in a few words."""
    folder: str | None = None
    """Of lm-eval's tasks, where its task is; None: in one of ours, or anywhere."""

    @property
    def of_choices(self) -> bool:
        """Whether choices are scored; False where texts are continued, or it is not known."""
        return self.chance is not None


#: What the names of bc2's own tasks begin with, so that they replace none of lm-eval's.
OWN_PREFIX = "bc2_"

_LETTERS = "acc,none"

_KNOWN = (
    Suite(
        "mmlu", "MMLU", "mmlu", "mmlu", 5, _LETTERS, 0.25, clustered=True,
        differs="the report gives no prompt",
        folder="mmlu/default",
    ),
    Suite(
        "cmmlu", "CMMLU", "cmmlu", "cmmlu", 5, _LETTERS, 0.25, clustered=True,
        differs="the report gives no prompt",
        folder="cmmlu",
    ),
    Suite(
        "ceval", "C-Eval", "ceval", "ceval-valid", 5, _LETTERS, 0.25, clustered=True, split="val",
        differs="val, not test, whose answers are not public; the first five rows of a subject's "
        "val are its shots and not scored where the release has no dev",
        folder="ceval",
    ),
    Suite(
        "agieval", "AGIEval", "agieval", "bc2_agieval", 5, _LETTERS, 0.25, clustered=True,
        differs="shots are the release's, and rows of test where it has fewer than five that fit; "
        "template",
    ),
    Suite(
        "gaokao", "Gaokao", "gaokao", "bc2_gaokao", 5, _LETTERS, 0.25, clustered=True,
        differs="shots are the first five rows of a subject, not scored; template",
    ),
    Suite(
        "jecqa", "JEC-QA", "jecqa", "bc2_jecqa", 5, _LETTERS, 0.25,
        differs="AGIEval's 2,000 rows, of them those with one right option; shots as for AGIEval",
    ),
    Suite(
        "medqa", "MedQA", "medqa", "bc2_medqa", 5, _LETTERS, 0.2,
        differs="USMLE with five options, not the Chinese sets; shots are five rows of "
        "train, or the first five of test, which are not scored then",
    ),
    Suite(
        "medmcqa", "MedMCQA", "medmcqa", "medmcqa", 5, _LETTERS, 0.25, split="validation",
        differs="without train the first five rows are shots and are not scored; the report gives "
        "no prompt",
        folder="medmcqa",
    ),
    Suite(
        "bbh", "BBH", "bbh", "bbh", 3, "exact_match,get-answer", clustered=True,
        differs="chain-of-thought shots; the text after “the answer is” must match exactly",
        folder="bbh/cot_fewshot",
    ),
    Suite(
        "gsm8k", "GSM8K", "gsm8k", "gsm8k", 4, "exact_match,strict-match",
        differs="four shots drawn from train for each question; the number after #### counts",
        folder="gsm8k",
    ),
    Suite(
        "humaneval", "HumanEval", "humaneval", "bc2_humaneval", 0, "pass@1,create_test",
        runs_code=True,
        differs="nothing known",
    ),
    Suite(
        "mbpp", "MBPP", "mbpp", "bc2_mbpp", 3, "pass_at_1,none", runs_code=True,
        differs="lm-eval's template, not OpenCompass's",
    ),
)  # fmt: skip

SUITES: dict[str, Suite] = {suite.name: suite for suite in _KNOWN}

_ALSO = {"jec-qa": "jecqa", "c-eval": "ceval"}


def suite_name(name: str) -> str:
    """The suite's own name, of another one that ``--bench`` takes for it; any other name as is."""
    own = _ALSO.get(name, name.removeprefix(OWN_PREFIX))
    return own if own in SUITES else name


def suite_of(name: str) -> Suite:
    """The suite of a name; any other task, group or tag of lm-eval with its own shots.

    A task on the data of a suite, such as ``cmmlu_anatomy``, has the suite's source.

    Raises:
        UsageError: neither bc2 nor lm-eval knows the name.
    """
    suite = SUITES.get(suite_name(name))
    if suite is not None:
        return suite
    from bc2.harness.task_index import data_of, has_task, task_manager

    if has_task(name):
        return Suite(name, name, _SOURCES.get(data_of(name) or ""), name, None, None)
    # The authors write MMLU, GSM8K and C-Eval.
    guess = nearest(name.lower(), [*SUITES, *_ALSO]) or nearest(name, task_manager().all_tasks)
    raise UsageError(
        f"no benchmark {name!r}",
        where="--bench",
        todo=f"did you mean {guess!r}? `bc2 eval --list` shows what there is"
        if guess
        else "see `bc2 eval --list`",
    )


#: lm-eval's dataset path to the release that has the same rows.
_SOURCES = {
    "cais/mmlu": "mmlu",
    "haonan-li/cmmlu": "cmmlu",
    "ceval/ceval-exam": "ceval",
    "openlifescienceai/medmcqa": "medmcqa",
    "SaylorTwift/bbh": "bbh",
    "openai/gsm8k": "gsm8k",
    "bc2/agieval": "agieval",
    "bc2/jecqa": "jecqa",
    "bc2/gaokao": "gaokao",
}
