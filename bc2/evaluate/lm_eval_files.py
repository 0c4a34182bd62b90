"""Scores in the files that lm-eval writes, for the tools that read those.

The file of results holds the totals and what ran; a file of samples for each task holds a line a
sample and filter, all of a filter together.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from bc2.evaluate.samples import Answer, Sample
from bc2.registry.environment import code, environment

#: The arguments of a sample's requests as lm-eval has them: (prompt, continuation) or
#: (prompt, generation settings). A sample does not hold them: a task can make them again.
Arguments = Callable[[Sample], Sequence[Sequence[Any]]]


#: Of a function in a task's settings, as it is written: another one in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")


@dataclass(frozen=True)
class RunRecord:
    """What ran, for the head of the results file. None is written as null."""

    model_name: str
    """The checkpoint's ref."""
    model_sha: str | None
    """The checkpoint's digest."""
    parameters: int
    dtype: str
    """As torch writes it: ``torch.float32``."""
    max_length: int
    """Positions of the window."""
    eot_token_id: int | None
    bootstrap_iters: int
    seed: int
    """Of the shots."""
    limit: int | None = None
    started: float | None = None
    """UNIX time."""
    seconds: float | None = None
    device: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: Mapping[str, tuple[str | None, int | None]] = field(default_factory=dict)
    """``pad``, ``eos``, ``bos``: token and id."""
    chat_template: str | None = None
    """The layout that was applied, in Jinja."""
    fewshot_as_multiturn: bool | None = None
    """Whether shots were turns of it."""


def date_id(started: float) -> str:
    """The date in the names of files, as lm-eval writes it; local time."""
    return datetime.fromtimestamp(started).isoformat(timespec="microseconds").replace(":", "-")


def results_json(
    totals: Mapping[str, Any], record: RunRecord, task_hashes: Mapping[str, str]
) -> str:
    """The results file.

    Args:
        totals: from `bc2.harness.aggregate`.
        task_hashes: from `write_samples`.
    """
    results = {
        **totals,
        "config": _config(record),
        "git_hash": code()["commit"],
        "date": record.started,
        **_environment(),
        **_tokenizer(record),
        "task_hashes": dict(task_hashes),
        "model_source": "bc2",
        "model_name": record.model_name,
        "model_name_sanitized": re.sub(r'["<>:/|\\?*\[\]]+', "__", record.model_name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": record.fewshot_as_multiturn,
        "chat_template": record.chat_template,
        "chat_template_sha": None if record.chat_template is None else _hash(record.chat_template),
        "total_evaluation_time_seconds": None if record.seconds is None else str(record.seconds),
    }
    written = json.dumps(results, indent=2, default=_plain, ensure_ascii=False)
    return _ADDRESS.sub("", written)


def _config(record: RunRecord) -> dict[str, Any]:
    return {
        "model": "bc2",
        "model_args": dict(record.model_args),
        "model_num_parameters": record.parameters,
        "model_dtype": record.dtype,
        "model_revision": record.model_name,
        "model_sha": record.model_sha,
        "batch_size": None,
        "batch_sizes": [],
        "device": record.device,
        "use_cache": None,
        "limit": record.limit,
        "bootstrap_iters": record.bootstrap_iters,
        "gen_kwargs": None,
        "random_seed": record.seed,
        "numpy_seed": record.seed,
        "torch_seed": record.seed,
        "fewshot_seed": record.seed,
    }


def _environment() -> dict[str, Any]:
    found = environment()
    packages = [f"{name} {version}" for name, version in found["packages"].items()]
    return {
        "pretty_env_info": "\n".join(
            [f"bc2 {code()['bc2']}", f"Python {found['python']}", found["platform"], *packages]
        ),
        "transformers_version": _version("transformers"),
        "lm_eval_version": _version("lm_eval"),
        "upper_git_hash": None,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "N/A"


def _tokenizer(record: RunRecord) -> dict[str, Any]:
    tokens = {name: record.special_tokens.get(name, (None, None)) for name in ("pad", "eos", "bos")}
    return {
        **{f"tokenizer_{name}_token": [token, str(id)] for name, (token, id) in tokens.items()},
        "eot_token_id": record.eot_token_id,
        "max_length": record.max_length,
    }


def raw_metrics(samples: Iterable[Sample]) -> dict[str, dict[tuple[str, str], list[Any]]]:
    """Of each task, the values by (metric, filter), for `bc2.harness.aggregate`."""
    by_task: dict[str, dict[tuple[str, str], list[Any]]] = {}
    for sample in samples:
        values = by_task.setdefault(sample.task, {})
        for name, metrics in sample.metrics.items():
            for metric, value in metrics.items():
                values.setdefault((metric, name), []).append(value)
    return by_task


def write_samples(
    folder: Path,
    samples: Iterable[Sample],
    arguments: Arguments | None = None,
    date: str | None = None,
) -> dict[str, str]:
    """Write a file for each task.

    Samples are taken one at a time and not kept; of each its three hashes are.

    Args:
        samples: those of a task follow one another.
        arguments: None: lines have what was cut in place of the prompts, which are many times as
            large as all else and can be built again.
        date: from `date_id`; None: names have none.

    Returns:
        By task, lm-eval's hash of all its samples.

    Raises:
        FileExistsError: there is such a file, or a task comes a second time.
    """
    hashes = {}
    for task, own in groupby(samples, key=lambda sample: sample.task):
        name = f"samples_{quote(task, safe='')}" + (f"_{date}" if date else "")
        path = folder / f"{name}.jsonl"
        with path.open("x", encoding="utf-8") as stream:
            hashes[task] = _write_task(stream, own, arguments)
    return hashes


def _write_task(stream: IO[str], samples: Iterable[Sample], arguments: Arguments | None) -> str:
    """Rows of the first filter go to the file at once, those of others wait aside for its end."""
    outs: dict[str, IO[str]] = {}
    hashes: dict[str, list[str]] = {}
    with ExitStack() as held:
        for sample in samples:
            for row in sample_rows(sample, arguments(sample) if arguments else None):
                name = row["filter"]
                if name not in outs:
                    outs[name] = held.enter_context(_aside()) if outs else stream
                outs[name].write(json.dumps(row, default=_plain, ensure_ascii=False) + "\n")
                hashes.setdefault(name, []).append(
                    row["doc_hash"] + row["prompt_hash"] + row["target_hash"]
                )
        for waiting in list(outs.values())[1:]:
            waiting.seek(0)
            shutil.copyfileobj(waiting, stream)
    return _hash("".join(each for own in hashes.values() for each in own))


def _aside() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def sample_rows(
    sample: Sample, arguments: Sequence[Sequence[Any]] | None
) -> Iterator[dict[str, Any]]:
    """The lines of a sample, one a filter.

    Raises:
        ValueError: the answers are not those of the requests.
    """
    target = str(sample.target)
    head = {
        "doc_id": sample.doc_id,
        "doc": dict(sample.doc),
        "target": target,
        **(_without_prompts(sample) if arguments is None else _with_prompts(arguments)),
        "resps": _as_text(_responses(sample, _requests(sample, arguments))),
    }
    doc = json.dumps(head["doc"], indent=2, default=_plain, ensure_ascii=False)
    hashes = {
        "doc_hash": _hash(doc),
        "prompt_hash": sample.prompt_digest,
        "target_hash": _hash(target),
    }
    for name, metrics in sample.metrics.items():
        yield {
            **head,
            "filtered_resps": _as_text(sample.filtered[name]),
            "filter": name,
            "metrics": list(metrics),
            **hashes,
            **metrics,
        }


def _with_prompts(arguments: Sequence[Sequence[Any]]) -> dict[str, Any]:
    requests = {
        f"gen_args_{i}": {f"arg_{j}": each for j, each in enumerate(request)}
        for i, request in enumerate(arguments)
    }
    return {"arguments": requests}


def _without_prompts(sample: Sample) -> dict[str, Any]:
    return {
        "tokens_cut": [answer.cut for answer in sample.answers],
        "met_limit": [answer.met_limit for answer in sample.answers],
    }


def _requests(sample: Sample, arguments: Sequence[Sequence[Any]] | None) -> int:
    """Requests of a sample: texts are repeats of one."""
    if arguments is not None:
        return len(arguments)
    return 1 if sample.answers[0].text is not None else len(sample.answers)


def _responses(sample: Sample, requests: int) -> list[list[Any]]:
    """One list a request, of its repeats."""
    repeats, rest = divmod(len(sample.answers), max(requests, 1))
    if rest or not repeats:
        raise ValueError(
            f"{sample.task}, sample {sample.doc_id}: {len(sample.answers)} answers to "
            f"{requests} requests"
        )
    given = [_response(answer) for answer in sample.answers]
    return [given[start : start + repeats] for start in range(0, len(given), repeats)]


def _response(answer: Answer) -> Any:
    if answer.text is not None:
        return answer.text
    if answer.greedy is None:
        return answer.log_prob  # of a whole text
    return [answer.log_prob, answer.greedy]


def _as_text(value: Any) -> Any:
    """Lists whose leaves are text: lm-eval writes columns of one type."""
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    return str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON does not know, as lm-eval writes it."""
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, set) else str(value)
