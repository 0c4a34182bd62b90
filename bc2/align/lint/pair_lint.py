"""Look at all pairs of a recipe as its model reads them: what would stop training, and figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bc2.align.lint.benchmark_texts import FoundBenchmarks, find_benchmarks, saved_index
from bc2.align.lint.cut_pairs import cut_figures, shared_tokens
from bc2.align.lint.figures import lengths_of, packing_of
from bc2.align.lint.length_bias import bias_by_source, score_figures
from bc2.align.lint.lint import control_names
from bc2.align.lint.lint_report import LintReport, PackingProof
from bc2.align.lint.packing_proof import prove_packing
from bc2.align.lint.pair_findings import pair_findings
from bc2.align.lint.pair_overlaps import evaluation_prompts, pair_overlaps
from bc2.align.lint.pair_report import PairFigures
from bc2.align.lint.pair_sources import pair_sources
from bc2.align.lint.pairs_found import PairsFound
from bc2.align.lint.text_scan import scan_split
from bc2.align.pairs.pair_inputs import render_settings
from bc2.align.pairs.pair_samples import PairSamples, with_end
from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.samples.packing import Rows, pack_rows, repeated
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.sample import Sample
from bc2.console import progress
from bc2.data.pairs.pairs import Pairs, PairTable
from bc2.data.splits import SPLITS, Split
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.chat import Chat


@dataclass(frozen=True)
class PairLintTask:
    """What is looked at."""

    name: str
    """Of the recipe."""
    ref: str
    """Of the pairs."""
    base: str
    """The ref of the model that training begins with."""
    folder: Path
    """Of the pairs."""
    source: ChatSource
    """Of their answers."""
    config: PreferenceConfig
    model: ModelConfig
    ends: bool
    """Whether the last token of an answer is read too: see `PackedPairs.ends`."""


def look(
    task: PairLintTask, pairs: Pairs, chat: Chat, split: Split, index: Path | None = None,
    workers: int | None = None, *, scans: bool = True,
) -> PairsFound:  # fmt: skip
    """Match the pairs of a split with their answers as training does, and read their texts.

    Args:
        index: where `NgramIndex.save` wrote what to search for.
        scans: False: texts are not read.
    """
    count = pairs.answers.count(split)
    with progress(f"tokenising {split}", count, "answers") as bar:
        samples = rendered_chats(
            task.source, split, render_settings(task.config), workers=workers, progress=bar
        )
    table = pairs.table(split)
    matched = PairSamples.of(table, samples, task.config.sequence_length, ends=task.ends)
    found = PairsFound(split, pairs, table, matched, pairs.origins(split))
    if not scans:
        return found
    with progress(f"reading {split}", count, "answers") as bar:
        names = control_names(chat)
        scan = scan_split(task.source.folder, split, names, index, workers=workers, progress=bar)
    return found.scanned(scan)


def lint_pairs(
    task: PairLintTask, *, show: int = 5, workers: int | None = None, benchmarks: Path | None = None
) -> LintReport:
    """Render, match, check, count and compare every pair; none is drawn.

    Args and raises: as `bc2.align.lint.lint.lint`.
    """
    began = time.monotonic()
    pairs, chat = Pairs.open(task.folder), task.source.chat()
    known = find_benchmarks(benchmarks)
    index = saved_index(known)
    found = [look(task, pairs, chat, split, index, workers) for split in SPLITS]
    seen = _Seen(task, pairs, chat, found)
    epoch = PairEpoch.of(found[0], task)
    return LintReport(
        name=task.name,
        unit="pairs",
        data=task.ref,
        base=task.base,
        layout=chat.name,
        sequence_length=task.config.sequence_length,
        train_on="assistant",
        splits={one.split: len(one.table) for one in found},
        findings=tuple(pair_findings(found, seen.shared, chat, task.config, known, show)),
        lengths=lengths_of(seen.tokens, seen.trained.sum(axis=1)),
        packing=packing_of(epoch.lengths, len(epoch.rows), task.config.sequence_length),
        sources=tuple(pair_sources(pairs, found, ends=task.ends)),
        copies_of_other_sources=sum(one.copies_of_others for one in found),
        overlaps=pair_overlaps(found, known, show),
        proof=_proof(epoch, found[0], task),
        seconds=time.monotonic() - began,
        pairs=seen.figures(known),
    )


@dataclass(frozen=True)
class PairEpoch:
    """The pairs of the first epoch as they are packed. Shapes: E pairs that it reads."""

    entries: npt.NDArray[np.int64]
    """[E], into the pairs that can be trained on."""
    lengths: npt.NDArray[np.int32]
    """[E]"""
    rows: Rows

    @classmethod
    def of(cls, train: PairsFound, task: PairLintTask) -> PairEpoch:
        """As a run packs them."""
        matched, config = train.matched, task.config
        times = np.array(train.pairs.times)[matched.table.source_ids]
        entries = repeated(times, config.seed)
        lengths = (matched.lengths[entries] + 2 * task.ends).astype(np.int32)
        rows = pack_rows(lengths, config.sequence_length, config.seed, epoch=0)
        return cls(entries, lengths, rows)


def _proof(epoch: PairEpoch, train: PairsFound, task: PairLintTask) -> PackingProof | None:
    """On the first row of an epoch, and the one with the most pairs."""
    rows = epoch.rows
    chosen = {0, int(np.diff(rows.starts).argmax())} if len(rows) else set()
    packed = [_samples(epoch, train, number, ends=task.ends) for number in sorted(chosen)]
    # What a head reads of a position is in its hidden state: of any head the proof is the same.
    model = task.model.model_copy(update={"head": "language", "num_classes": None})
    return prove_packing(packed, task.config.sequence_length, model)


def _samples(epoch: PairEpoch, train: PairsFound, row: int, *, ends: bool) -> list[Sample]:
    """The answers of a row's pairs."""
    places = train.matched.places[epoch.entries[epoch.rows[row]]].ravel().tolist()
    samples = [train.samples.sample(place) for place in places]
    return [with_end(one) for one in samples] if ends else samples


@dataclass(frozen=True)
class _Seen:
    """Figures over both splits."""

    task: PairLintTask
    pairs: Pairs
    chat: Chat
    found: list[PairsFound]

    @cached_property
    def shared(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of each split, what `shared_tokens` says."""
        return [shared_tokens(one, self.pairs.answers, self.chat) for one in self.found]

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Of the pairs that can be trained on."""
        return np.concatenate([one.matched.lengths + 2 * self.task.ends for one in self.found])

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """[P, 2] tokens of the answers of these."""
        both = [one.samples.trained[one.matched.places].astype(np.int64) for one in self.found]
        return np.concatenate(both).reshape(-1, 2)

    def figures(self, known: FoundBenchmarks) -> PairFigures:
        """What only pairs have."""
        table, answers = _joined(self.found)
        biased = bias_by_source(table, self.trained, self.pairs.sources)
        scored = score_figures(table, self.trained, answers, self.pairs.sources)
        shared, longer = (np.concatenate(each) for each in zip(*self.shared, strict=True))
        counts = [np.unique(one.table.prompt, return_counts=True)[1] for one in self.found]
        return PairFigures(
            prompts={one.split: len(each) for one, each in zip(self.found, counts, strict=True)},
            answers={one.split: self.pairs.answers.count(one.split) for one in self.found},
            pairs_per_prompt=_spread(np.concatenate(counts)),
            length_bias=tuple(biased),
            scores=tuple(scored),
            cut=tuple(cut_figures(shared, longer)),
            evaluation_prompts=evaluation_prompts(self.found, known),
        )


def _joined(found: list[PairsFound]) -> tuple[PairTable, npt.NDArray[np.int64]]:
    """The pairs of both splits that can be trained on, and numbers of their answers [P, 2].

    Of the second split numbers of prompts and answers go on after those of the first.
    """
    tables, answers, prompts, before = [], [], 0, 0
    for one in found:
        table = one.matched.table
        tables.append(replace(table, prompt=table.prompt + prompts))
        answers.append(np.stack([table.chosen, table.rejected], axis=1) + before)
        prompts += int(one.table.prompt.max(initial=-1)) + 1
        before += one.pairs.answers.count(one.split)
    columns = {
        each.name: np.concatenate([getattr(table, each.name) for table in tables])
        for each in fields(PairTable)
    }
    return PairTable(**columns), np.concatenate(answers)


def _spread(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    named = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    found = np.quantile(counts, list(named.values()), method="lower").tolist()
    return {"mean": float(counts.mean()), **dict(zip(named, found, strict=True))}
