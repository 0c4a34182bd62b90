"""Look at all conversations of a recipe: what would stop fine-tuning, figures, and packing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bc2.align.lint.benchmark_texts import find_benchmarks, saved_index
from bc2.align.lint.figures import (
    SplitFound,
    lengths_of,
    overlaps_of,
    packing_of,
    place_of,
    source_figures,
)
from bc2.align.lint.lint_report import Finding, LintReport, PackingProof
from bc2.align.lint.packing_proof import prove_packing
from bc2.align.lint.text_scan import scan_split
from bc2.align.samples.packing import Rows, pack_rows, repeated
from bc2.align.samples.render_settings import RenderSettings
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.row_checks import FAULTS
from bc2.align.samples.sample_store import Samples
from bc2.align.sft.sft_config import SftConfig
from bc2.console import progress
from bc2.data.chats.chats import Chats
from bc2.data.splits import SPLITS, Split
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.chat import Chat


@dataclass(frozen=True)
class LintTask:
    """What is looked at."""

    name: str
    """Of the recipe."""
    chats: str
    """The ref of the conversations."""
    base: str
    """The ref of the model that is fine-tuned."""
    source: ChatSource
    config: SftConfig
    model: ModelConfig


def lint(
    task: LintTask, *, show: int = 5, workers: int | None = None, benchmarks: Path | None = None
) -> LintReport:
    """Render, check, count and compare everything; no sample is drawn.

    Args:
        show: places that each finding names.
        benchmarks: a folder of benchmarks; None: ``$BC2_BENCH_DATA``, else bc2's cache.

    Raises:
        DataError: the layout does not go with the tokenizer, or `benchmarks` is no folder.
        ResourceError: a worker was killed for memory.
    """
    began = time.monotonic()
    chats, chat, config = Chats.open(task.source.folder), task.source.chat(), task.config
    known = find_benchmarks(benchmarks)
    index = saved_index(known)
    found = [_look(task, chats, chat, split, index, workers) for split in SPLITS]
    train = found[0]
    entries = repeated(np.array(chats.times)[train.source_ids[train.samples.index]], config.seed)
    rows = pack_rows(train.samples.lengths[entries], config.sequence_length, config.seed, epoch=0)
    return LintReport(
        name=task.name,
        unit="conversations",
        data=task.chats,
        base=task.base,
        layout=chat.name,
        sequence_length=config.sequence_length,
        train_on=config.train_on,
        splits={one.split: chats.count(one.split) for one in found},
        findings=tuple(_findings(chats, found, config, show)),
        lengths=lengths_of(
            np.concatenate([one.samples.lengths for one in found]).astype(np.int64),
            np.concatenate([one.samples.trained for one in found]).astype(np.int64),
        ),
        packing=packing_of(train.samples.lengths[entries], len(rows), config.sequence_length),
        sources=source_figures(chats, found),
        copies_of_other_sources=sum(one.copies_of_others for one in found),
        overlaps=overlaps_of(chats, known, found, show),
        proof=_proof(train.samples, entries, rows, task),
        seconds=time.monotonic() - began,
    )


def _look(
    task: LintTask, chats: Chats, chat: Chat, split: Split, index: Path | None,
    workers: int | None,
) -> SplitFound:  # fmt: skip
    config, count = task.config, chats.count(split)
    settings = RenderSettings(config.sequence_length, config.train_on, config.too_long)
    with progress(f"tokenising {split}", count, "conversations") as bar:
        samples = rendered_chats(task.source, split, settings, workers=workers, progress=bar)
    with progress(f"reading {split}", count, "conversations") as bar:
        scan = scan_split(
            task.source.folder, split, control_names(chat), index, workers=workers, progress=bar
        )
    return SplitFound(split, samples, scan, chats.source_ids(split))


def control_names(chat: Chat) -> list[str]:
    """The control tokens and markers of a layout, as a text would spell them."""
    tokenizer = chat.tokenizer
    return sorted({*tokenizer.special_ids, *map(tokenizer.piece_of, chat.markers)})


def _findings(
    chats: Chats, found: Sequence[SplitFound], config: SftConfig, show: int
) -> Iterator[Finding]:
    """What can be wrong with conversations, and what of it was found."""
    faults = [(one, fault) for one in found for fault in one.samples.faults]
    for code, says in FAULTS.items():
        here = [(one, fault.place, fault.why) for one, fault in faults if fault.code == code]
        yield _finding(chats, code, says, config.faulty, here, show)
    window = f"{config.sequence_length:,} tokens"
    long = [
        (one, index, f"{tokens:,} tokens")
        for one in found
        for index, tokens in one.samples.too_long
    ]
    policy = "drop" if config.too_long == "rounds" else config.too_long
    yield _finding(chats, "too_long", f"it does not fit into {window}", policy, long, show)
    cut = [(one, index, "") for one in found for index in one.samples.cut]
    says = f"of it the first rounds that fit into {window} are kept"
    yield _finding(chats, "cut_to_rounds", says, "rounds", cut, show)
    for code, says, here in _notices(chats, found, show):
        yield _finding(chats, code, says, "", here, show)


def _notices(
    chats: Chats, found: Sequence[SplitFound], show: int
) -> Iterator[tuple[str, str, list[tuple[SplitFound, int, str]]]]:
    """What is trained on as it is, and worth knowing."""
    spelled = [(one, index, name) for one in found for index, name in one.scan.spelled]
    yield "spelled_control", "it spells a control token, which stays text", spelled
    ends = [(one, index, "") for one in found for index in one.scan.unanswered]
    yield "unanswered", "the user has the last word, which is left out", ends
    pairs = [(one, first, index) for one in found for first, index in one.copies]
    copies = [
        (one, index, f"as row {chats.at(one.split, first).row:,}" if number < show else "")
        for number, (one, first, index) in enumerate(pairs)
    ]
    yield "copy", "its source has said it before, word for word", copies


def _finding(
    chats: Chats, code: str, says: str, policy: str, here: Sequence[tuple[SplitFound, int, str]],
    show: int,
) -> Finding:  # fmt: skip
    examples = [place_of(chats, one.split, index, why) for one, index, why in here[:show]]
    # A conversation with two faults of a kind is one.
    rows = {(one.split, index): int(one.source_ids[index]) for one, index, _ in here}
    sources = Counter(chats.sources[number] for number in rows.values())
    return Finding(code, says, len(rows), policy, dict(sources), tuple(examples))


def _proof(
    samples: Samples, entries: npt.NDArray[np.int64], rows: Rows, task: LintTask
) -> PackingProof | None:
    """On the first row of an epoch, and the one with the most samples."""
    chosen = {0, int(np.diff(rows.starts).argmax())} if len(rows) else set()
    packed = [
        [samples.sample(int(place)) for place in entries[rows[number]]] for number in sorted(chosen)
    ]
    return prove_packing(packed, task.config.sequence_length, task.model)
