"""Build a task's prompts: lm-eval's requests, as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from bc2.errors import DataError
from bc2.evaluate.encoding import PromptEncoder
from bc2.evaluate.prompts import Kind, Prompt

#: lm-eval's types of requests.
KINDS: dict[str, Kind] = {
    "loglikelihood": "score",
    "multiple_choice": "score",
    "generate_until": "generate",
    "loglikelihood_rolling": "rolling",
}


def kind_of(task: Any) -> Kind:
    """What is asked in a task of lm-eval."""
    return KINDS[task.OUTPUT_TYPE]


def build_prompts(task: Any, encoder: PromptEncoder, samples: int, seed: int) -> Iterator[Prompt]:
    """The prompts of the first samples of a task, as lm-eval writes them.

    Args:
        task: lm-eval's, with its shots set.

    Raises:
        DataError: a sample cannot be turned into a prompt; it is named.
    """
    # The examples are drawn anew from the beginning, however often this task was built before.
    task.set_fewshot_seed(seed)
    name = task.task_name
    try:
        task.build_all_requests(limit=samples)
    except Exception as error:  # a task's templates and functions: no common class
        raise DataError(
            f"the prompts of {name} cannot be built: {error}", todo="check the benchmark's files"
        ) from error
    instances, task._instances = task.instances, None
    for doc_id, group in groupby(instances, key=lambda instance: instance.doc_id):
        try:
            yield _prompt(doc_id, list(group), encoder, _question(task, doc_id))
        except DataError as error:
            raise DataError(error.what, where=f"{name}:{doc_id}", todo=error.todo) from error


def _question(task: Any, doc_id: int) -> str:
    """What is asked without shots; "" where it is not one text."""
    text = task.doc_to_text(task.eval_docs[doc_id])
    return text if isinstance(text, str) else ""


def _prompt(doc_id: int, instances: Sequence[Any], encoder: PromptEncoder, question: str) -> Prompt:
    texts = [instance.args for instance in instances]
    digest = hashlib.sha256(texts[0][0].encode("utf-8", "surrogatepass")).hexdigest()
    contexts, asked = _encoded(KINDS[instances[0].request_type], texts, encoder)
    return Prompt(doc_id, digest, len(encoder.encode(question)), contexts, asked)


def _encoded(
    kind: Kind, texts: Sequence[tuple[Any, ...]], encoder: PromptEncoder
) -> tuple[list[Sequence[int]], list[tuple[int, Sequence[int]]]]:
    """Distinct contexts, and for each request its context and continuation."""
    contexts: list[Sequence[int]] = []
    asked: list[tuple[int, Sequence[int]]] = []
    if kind == "generate":
        return [encoder.encode(texts[0][0])], [(0, ())]
    if kind == "rolling":
        return [()], [(0, encoder.encode(texts[0][0]))]
    # Neighbours have the same context, as a rule.
    for context, group in groupby(texts, key=lambda text: text[0]):
        ids, continuations = encoder.pair(context, [text[1] for text in group])
        asked += [(len(contexts), continuation) for continuation in continuations]
        contexts.append(ids)
    return contexts, asked
