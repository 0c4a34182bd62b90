"""A program that reads a format compared with ours: one engine after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.bounds import FEW_BITS, Bounds, bounds_of
from bc2.convert.proof.compare_model import KEPT, TOKENS, Questions, Said, compare
from bc2.convert.proof.compare_texts import compare_chat, compare_texts
from bc2.convert.proof.consumer import Consumer
from bc2.convert.proof.hard_texts import strings
from bc2.convert.proof.open_consumer import (
    computes_narrowly,
    least_log_probability,
    open_consumer,
    widened,
)
from bc2.convert.proof.our_model import Rounding
from bc2.convert.proof.real_texts import RealTexts
from bc2.convert.proof.worker import open_worker

#: Strings whose tokens are compared.
STRINGS = 10_000

#: Draws texts and strings.
_SEED = 20230906

#: How much less is asked of llama.cpp.
_SLOWER = 4

#: What is found, and what of it is wrong.
Found = tuple[dict[str, Any], list[str]]


class ProgramProof:
    """A comparison of what was written, in the program that it is for, with ours.

    Args:
        scratch: a folder for what engines say, and for weights that are written for the proof.
    """

    def __init__(
        self, folder: Path, source: SourceModel, plan: ExportPlan, texts: RealTexts, scratch: Path
    ):
        self._folder = folder
        self._source = source
        self._plan = plan
        self._texts = texts
        self._scratch = scratch
        self._questions = _questions(source, plan, texts)
        self._narrow = computes_narrowly(plan)
        self._problems: list[str] = []

    def run(self) -> Found:
        """Ask ours, then theirs, each alone in memory.

        Raises:
            RunFailed: an engine does not load what was written, or dies.
        """
        facts: dict[str, Any] = {"text": {"title": self._texts.title, "sha256": self._texts.digest}}
        ours = self._ours()
        bounds = FEW_BITS if self._plan.before else bounds_of(self._plan.dtype)
        with open_consumer(self._plan, self._folder, self._scratch) as consumer:
            facts["program"] = {"name": consumer.name, "version": consumer.version}
            facts["tokenizer"] = self._noted(self._compare_texts(consumer))
            facts["chat"] = self._noted(compare_chat(self._source.chat, consumer))
            close = FEW_BITS if self._narrow else bounds
            facts["model"] = self._compare_model(ours, consumer, close)
        if self._narrow:
            with self._wide() as consumer:
                facts["model_in_fp32"] = self._compare_model(ours, consumer, bounds)
        return facts, self._problems

    def _ours(self) -> Said:
        rounding = Rounding.of(self._source, self._plan, self._folder)
        with open_worker("bc2", self._scratch, rounding=rounding.to_json()) as ours:
            return Said.by(ours, self._questions, margins=True)

    @contextmanager
    def _wide(self) -> Iterator[Consumer]:
        """The program with the same rounded weights in fp32, written for this alone."""
        folder, plan = self._scratch / "wide", widened(self._source, self._plan)
        folder.mkdir()
        plan.write(folder, self._source, plan, lambda count: None)
        with open_consumer(plan, folder, self._scratch) as consumer:
            yield consumer

    def _compare_model(self, ours: Said, consumer: Consumer, bounds: Bounds) -> dict[str, Any]:
        theirs = Said.by(consumer, self._questions)
        floor = least_log_probability(self._plan)
        found = compare(ours, theirs, self._questions, bounds, self._ends(), floor)
        return self._noted(found)

    def _compare_texts(self, consumer: Consumer) -> Found:
        tokenizer = self._source.tokenizer
        controls = [name for name in (*tokenizer.special_ids, *tokenizer.added_ids) if name]
        texts = strings(self._texts.texts, controls, STRINGS, _SEED)
        assert self._plan.prover is not None
        return compare_texts(tokenizer, consumer, texts, self._plan.prover)

    def _ends(self) -> set[int]:
        """Tokens at which the program may end of its own accord."""
        source = self._source
        chat = source.chat.end_ids if source.chat is not None else ()
        ends = {source.tokenizer.eos_id, *source.generation.end_ids, *chat}
        if self._plan.prover == "llama.cpp":
            # It ends at some by their names, such as <|eom_id|>, whatever the file says.
            ends |= {*source.tokenizer.special_ids.values(), *source.tokenizer.added_ids.values()}
        return ends

    def _noted(self, found: Found) -> dict[str, Any]:
        facts, problems = found
        self._problems += problems
        return facts


def _questions(source: SourceModel, plan: ExportPlan, texts: RealTexts) -> Questions:
    """Of texts in a drawn order, so that each source comes early."""
    order = list(texts.texts)
    random.Random(_SEED).shuffle(order)
    config, context, kept, tokens = source.config, source.config.context_length, KEPT, TOKENS
    if plan.prover == "llama.cpp":
        # It says one token's numbers at a time, in text; and has no window, but a context instead.
        kept, tokens = kept // _SLOWER, tokens // _SLOWER
        context = min(context, config.sliding_window or context)
    return Questions.of(
        order, source.tokenizer, context, config.vocab_size, kept=kept, tokens=tokens
    )
