"""The scores of a checkpoint in a suite: judged, totalled and written as the artifact's files.

``scores.json`` has a summary of the suite and of each subject; ``results.json`` is in lm-eval's
format; ``scores.csv`` and ``scores.md`` are tables; ``samples/`` has every sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bc2.errors import DataError
from bc2.evaluate.answer_journal import AnswerJournal
from bc2.evaluate.judging import judged_samples
from bc2.evaluate.lm_eval_files import RunRecord, raw_metrics, results_json, write_samples
from bc2.evaluate.samples import Sample
from bc2.evaluate.suite_run import SuiteRun
from bc2.evaluate.summary import SuiteFacts, Summary, metric_of, summarize
from bc2.evaluate.tables import scores_csv, scores_json, scores_markdown
from bc2.harness.aggregate import (
    BOOTSTRAP_ITERS,
    aggregate,
    chance_of,
    extraction_fallbacks,
    metric_keys,
    other_aggregations,
)
from bc2.harness.load import LoadedSuite
from bc2.registry import Artifact

SCORES, RESULTS, CSV, MARKDOWN, SAMPLES = (
    "scores.json", "results.json", "scores.csv", "scores.md", "samples",
)  # fmt: skip

#: Metrics that are shares of right answers.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "em", "pass@1", "pass_at_1", "f1", "mcc")


def write_scores(run: SuiteRun, journal: AnswerJournal, work: Path, out: Path) -> Mapping[str, Any]:
    """Judge the answers of a run and write the payload; returns the facts to record.

    Raises:
        RunFailed: there is no score: see `summarize`.
    """
    loaded = run.prompts.loaded
    scored: dict[str, tuple[Any, Any]] = {}
    hashes: dict[str, str] = {}
    (out / SAMPLES).mkdir()

    def written() -> Iterator[Sample]:
        verdicts = run.verdicts(work) if run.verdicts is not None else None
        for task in run.prompts.tasks:
            # Of one task at a time: the samples of a suite need not fit into memory.
            samples = list(judged_samples(run.prompts, task, journal, verdicts))
            hashes.update(write_samples(out / SAMPLES, samples))
            own = loaded.tasks[task.task]
            scored[task.task] = own, raw_metrics(samples)[task.task]
            yield from samples

    summaries = summarize(written(), suite_facts(run, loaded))
    totals = aggregate(scored, loaded.groups)
    results = results_json(totals, _record(run), hashes)
    for name, text in {
        SCORES: scores_json(summaries),
        RESULTS: results,
        CSV: scores_csv(summaries),
        MARKDOWN: scores_markdown(summaries),
    }.items():
        (out / name).write_text(text, encoding="utf-8")
    return _facts(run, summaries[0])


def read_summaries(artifact: Artifact) -> list[Summary]:
    """The summaries of registered scores: of the suite, then of its subjects.

    Raises:
        IntegrityError: the file is not what was published.
    """
    found = json.loads(artifact.file(SCORES).read_bytes())
    return [Summary.from_json(value) for value in found]


def suite_facts(run: SuiteRun, loaded: LoadedSuite) -> SuiteFacts:
    """What `summarize` must know of a suite."""
    suite = run.prompts.rows.suite
    tasks = list(loaded.tasks.values())
    headline = suite.metric or _first_metric(tasks[0])
    return SuiteFacts(
        suite=suite.name,
        headline=headline,
        shots=_shots(run.prompts.settings.shots, tasks),
        chance=suite.chance if suite.metric is not None else _chances(run, loaded, headline),
        clustered=suite.clustered or suite.metric is None,
        weighted=_weighted(loaded),
        percent=headline.partition(",")[0] in _SHARES,
        aggregations={k: made for task in tasks for k, made in other_aggregations(task).items()},
        fallbacks={k: v for task in tasks for k, v in extraction_fallbacks(task).items()},
        subjects={name: task.config.task_alias or name for name, task in loaded.tasks.items()},
        layout=None if run.prompts.chat is None else run.prompts.chat.name,
    )


def _shots(asked: int | None, tasks: Sequence[Any]) -> int | None:
    """Examples in a prompt: as was asked, or the tasks' own; None if these differ."""
    own = {task.config.num_fewshot or 0 for task in tasks}
    return asked if asked is not None else own.pop() if len(own) == 1 else None


def _chances(run: SuiteRun, loaded: LoadedSuite, headline: str) -> dict[str, float | None]:
    """By task, what a blind guess at its questions would score."""
    metric, limit = metric_of(headline), run.prompts.settings.limit
    return {name: chance_of(task, metric, limit) for name, task in loaded.tasks.items()}


def _first_metric(task: Any) -> str:
    """The headline of a task that is no suite of ours: its first metric after its first filter."""
    if not task.aggregation():
        raise DataError(f"{task.task_name} has no metric", todo="name another task")
    return metric_keys(task)[0]


def _weighted(loaded: LoadedSuite) -> bool:
    """Whether a group's score is the mean over samples, as lm-eval has it."""
    group = loaded.groups.get(loaded.suite.task)
    metrics = group.aggregate_metric_list if group is not None else None
    return metrics[0].weight_by_size if metrics else True


def _facts(run: SuiteRun, whole: Summary) -> dict[str, Any]:
    """What the registry records of the scores, beside the settings."""
    rows, release, chat = run.prompts.rows, run.prompts.rows.release, run.prompts.chat
    return {
        **({} if chat is None else {"chat_layout": chat.name}),
        "suite": rows.suite.name,
        "metric": whole.metric,
        "score": whole.score,
        "stderr": whole.stderr,
        "samples": whole.samples,
        "tasks": {
            name: {key: task[key] for key in ("hash", "version")}
            for name, task in run.prompts.facts["tasks"].items()
        },
        "data": {
            "origin": release.origin if release is not None else "the hub, read by lm-eval",
            "files": {one.name: one.sha256 for one in release.files} if release else {},
            "differences": list(release.differences) if release is not None else [],
        },
    }


def _record(run: SuiteRun) -> RunRecord:
    holder, settings, chat = run.holder, run.prompts.settings, run.prompts.chat
    return RunRecord(
        model_name=holder.artifact.title,
        model_sha=holder.artifact.digest,
        parameters=holder.shape.num_params(),
        dtype=str(holder.dtype),
        max_length=holder.window,
        eot_token_id=holder.tokenizer.eos_id,
        bootstrap_iters=BOOTSTRAP_ITERS,
        seed=settings.seed,
        limit=settings.limit,
        device=holder.device.type,
        chat_template=None if chat is None else chat.template,
        fewshot_as_multiturn=None if chat is None else settings.fewshot_as_multiturn,
    )
