"""Which pairs share words with benchmarks, and which prompts are a benchmark's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bc2.align.lint.benchmark_texts import FoundBenchmarks
from bc2.align.lint.lint_report import BenchmarkFound, Overlaps, Place
from bc2.align.lint.pairs_found import PairsFound, prompt_of
from bc2.align.lint.text_scan import Overlap


def pair_overlaps(found: Sequence[PairsFound], known: FoundBenchmarks, show: int) -> Overlaps:
    """What was found of each benchmark that was searched for; counts are of pairs.

    Args:
        show: places that are named for each.
    """
    lines = []
    for name, texts in Counter(text.benchmark for text in known.texts).items():
        here = [
            (one, overlap)
            for one in found
            for overlap in one.scan.overlaps
            if known.texts[overlap.benchmark_text].benchmark == name
        ]
        answers = [
            (one, np.array([overlap.index for mine, overlap in here if mine is one], np.int64))
            for one in found
        ]
        lines.append(
            BenchmarkFound(
                benchmark=name,
                texts=texts,
                found=len({overlap.benchmark_text for _, overlap in here}),
                rows=sum(int(one.with_answers(some).sum()) for one, some in answers),
                examples=tuple(_place(one, overlap, known) for one, overlap in here[:show]),
            )
        )
    return Overlaps(tuple(lines), known.missing, known.unreadable)


def _place(one: PairsFound, overlap: Overlap, known: FoundBenchmarks) -> Place:
    theirs = known.texts[overlap.benchmark_text].place
    return one.place(one.pairs_with(overlap.index)[0], f"{theirs}: “{overlap.words}”")


def prompt_overlaps(one: PairsFound, known: FoundBenchmarks) -> list[tuple[str, int, Overlap]]:
    """Benchmark, prompt and overlap of what prompts of a split share with benchmarks.

    Of each prompt and benchmark the first.
    """
    seen: dict[tuple[str, int], Overlap] = {}
    for overlap in one.scan.overlaps:
        benchmark = known.texts[overlap.benchmark_text].benchmark
        prompt = one.prompt_of_answer[overlap.index]
        if (benchmark, prompt) not in seen:
            said = prompt_of(one.pairs.answers.at(one.split, overlap.index))
            if any(overlap.words in message["content"] for message in said):
                seen[benchmark, prompt] = overlap
    return [(benchmark, prompt, overlap) for (benchmark, prompt), overlap in seen.items()]


def evaluation_prompts(found: Sequence[PairsFound], known: FoundBenchmarks) -> dict[str, int]:
    """How many prompts have words of each benchmark of which any has."""
    every = [benchmark for one in found for benchmark, _, _ in prompt_overlaps(one, known)]
    return dict(Counter(every).most_common())
