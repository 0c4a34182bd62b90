"""What can be wrong with pairs or worth knowing, and what of it was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bc2.align.lint.benchmark_texts import FoundBenchmarks
from bc2.align.lint.lint_report import Finding, Place
from bc2.align.lint.pair_overlaps import prompt_overlaps
from bc2.align.lint.pairs_found import PairsFound, prompt_of
from bc2.align.pairs.pair_samples import PAIR_FAULTS
from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.samples.row_checks import FAULTS
from bc2.tokenizer.chat import Chat

#: What each split shares and has: as `bc2.align.lint.cut_pairs.shared_tokens` gives it.
Shared = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

#: A pair of a split by its place, and what is said of it.
Said = tuple[PairsFound, int, str]


def pair_findings(
    found: Sequence[PairsFound], shared: Shared, chat: Chat, config: PreferenceConfig,
    known: FoundBenchmarks, show: int,
) -> Iterator[Finding]:  # fmt: skip
    """Every kind of finding, errors first.

    Args:
        show: places that each names.
    """
    faults = [(one, fault) for one in found for fault in one.matched.faults]
    for code, says in (FAULTS | PAIR_FAULTS).items():
        here = [(one, fault.place, fault.why) for one, fault in faults if fault.code == code]
        yield _finding(code, says, config.faulty, here, show)
    full, long = _too_long(found, chat, config.sequence_length)
    window = f"{config.sequence_length:,} tokens"
    says = f"its prompt, which both answers have, leaves no room for them in {window}"
    yield _finding("prompt_fills_window", says, config.too_long, full, show)
    says = f"both answers with their prompt do not fit into {window}"
    yield _finding("too_long", says, config.too_long, long, show)
    says = f"a program that cuts answers at {window} would make them identical"
    cut = _identical_when_cut(found, shared, config.sequence_length)
    yield _finding("identical_when_cut", says, config.too_long, cut, show)
    for code, says, here in _notices(found, known, show):
        yield _finding(code, says, "", here, show)


def _finding(code: str, says: str, policy: str, here: Sequence[Said], show: int) -> Finding:
    examples: dict[tuple[str, int, str], Place] = {}
    for one, number, why in here:
        if len(examples) == show:
            break
        place = one.place(number, why)
        # A row with many answers makes many pairs, of which the first says enough.
        examples.setdefault((place.file, place.row, place.split), place)
    # A pair with two faults of a kind is one.
    pairs = {(one.split, number): one.source(number) for one, number, _ in here}
    return Finding(
        code, says, len(pairs), policy, dict(Counter(pairs.values())), tuple(examples.values())
    )


def _too_long(
    found: Sequence[PairsFound], chat: Chat, window: int
) -> tuple[list[Said], list[Said]]:
    """Pairs whose prompt fills the window, and the others that do not fit."""
    full: list[Said] = []
    long: list[Said] = []
    for one in found:
        prompts: dict[int, int] = {}
        for number, tokens in one.matched.too_long:
            prompt = int(one.table.prompt[number])
            if prompt not in prompts:
                answer = one.pairs.answers.at(one.split, int(one.table.chosen[number]))
                prompts[prompt] = len(chat.prompt(prompt_of(answer)))
            if 2 * prompts[prompt] >= window:
                full.append((one, number, f"twice {prompts[prompt]:,} tokens of prompt"))
            else:
                long.append((one, number, f"{tokens:,} tokens"))
    return full, long


def _identical_when_cut(found: Sequence[PairsFound], shared: Shared, window: int) -> list[Said]:
    return [
        (one, number, f"they first differ after {int(both[number]):,} tokens")
        for one, (both, _) in zip(found, shared, strict=True)
        for number in np.flatnonzero(both >= window).tolist()
    ]


def _notices(
    found: Sequence[PairsFound], known: FoundBenchmarks, show: int
) -> Iterator[tuple[str, str, list[Said]]]:
    """What is trained on as it is, and worth knowing."""
    turned = [(one, n, "") for one in found for n in one.reversed.tolist()]
    yield "contradiction", "the same two answers stand the other way round too", turned
    cycles = [(one, n, "") for one in found for n in one.cyclic.tolist()]
    yield "cycle", "a is better than b, b than c, and c than a: it is one of these", cycles
    says = "its prompt is in training too, but for case, white space and the system message"
    yield "heldout_prompt_in_training", says, _leaked(found)
    says = "its prompt has words of a benchmark, which then measures what was learnt"
    yield "evaluation_prompt", says, _of_benchmarks(found, known)
    spelled = {
        (one.split, number): (one, number, name)
        for one in found
        for answer, name in one.scan.spelled
        for number in one.pairs_with(answer)
    }
    yield "spelled_control", "it spells a control token, which stays text", list(spelled.values())
    again = [(one, first, number) for one in found for first, number in one.copies]
    copies = [
        (one, number, f"as row {one.place(first, '').row:,}" if count < show else "")
        for count, (one, first, number) in enumerate(again)
    ]
    yield "copy", "its source has the same pair before, word for word", copies


def _leaked(found: Sequence[PairsFound]) -> list[Said]:
    """Held-out pairs whose prompt is asked in training too."""
    asked = {one.split: one.prompt_texts for one in found}
    train = set(asked["train"].values())
    (held,) = [one for one in found if one.split == "heldout"]
    prompts = [prompt for prompt, text in asked["heldout"].items() if text in train]
    return [(held, int(n), "") for n in np.flatnonzero(np.isin(held.table.prompt, prompts))]


def _of_benchmarks(found: Sequence[PairsFound], known: FoundBenchmarks) -> list[Said]:
    """Pairs whose prompt shares words with a benchmark."""
    said = []
    for one in found:
        first = {prompt: overlap for _, prompt, overlap in reversed(prompt_overlaps(one, known))}
        for number, prompt in enumerate(one.table.prompt.tolist()):
            if prompt in first:
                text = known.texts[first[prompt].benchmark_text]
                said.append(
                    (one, number, f"{text.benchmark} {text.place}: “{first[prompt].words}”")
                )
    return said
