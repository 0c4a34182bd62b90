"""Build a task's prompts: lm-eval's requests, as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from bc2.evaluate.encoding import PromptEncoder
from bc2.evaluate.prompts import Kind, Prompt
from bc2.harness.questions import ChatForm, questions

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


def build_prompts(
    task: Any, encoder: PromptEncoder, samples: int, seed: int, chat: ChatForm | None = None
) -> Iterator[Prompt]:
    """The prompts of the first samples of a task, as lm-eval writes them.

    Args:
        task: lm-eval's, with its shots set.
        chat: how chats are made of them; its template is the encoder's.

    Raises:
        DataError: a sample cannot be turned into a prompt; it is named.
    """
    # The examples are drawn anew from the first sample on, however often it was built before.
    task.set_fewshot_seed(seed)
    for question in questions(task, samples, chat):
        where = f"{task.task_name}:{question.doc_id}"
        texts = [request.args for request in question.requests]
        digest = hashlib.sha256(texts[0][0].encode("utf-8", "surrogatepass")).hexdigest()
        contexts, asked = _encoded(kind_of(task), texts, encoder, where)
        alone = task.doc_to_text(question.doc)
        tokens = encoder.question_tokens(alone) if isinstance(alone, str) else 0
        yield Prompt(question.doc_id, digest, tokens, contexts, asked)


def _encoded(
    kind: Kind, texts: Sequence[tuple[Any, ...]], encoder: PromptEncoder, where: str
) -> tuple[list[Sequence[int]], list[tuple[int, Sequence[int]]]]:
    """Distinct contexts, and for each request its context and continuation."""
    contexts: list[Sequence[int]] = []
    asked: list[tuple[int, Sequence[int]]] = []
    if kind == "generate":
        return [encoder.encode(texts[0][0])], [(0, ())]
    if kind == "rolling":
        # The beginning is the token before the text, and not itself predicted.
        return [()], [(0, encoder.text_ids(texts[0][0]))]
    # Neighbours have the same context, as a rule.
    for context, group in groupby(texts, key=lambda text: text[0]):
        ids, continuations = encoder.pair(context, [text[1] for text in group], where=where)
        asked += [(len(contexts), continuation) for continuation in continuations]
        contexts.append(ids)
    return contexts, asked
