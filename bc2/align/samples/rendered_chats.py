"""The conversations of an artifact as samples, rendered by the model's chat layout.

Every row is checked as it is rendered (`bc2.align.samples.row_checks`). What is done with rows that
are faulty or too long is said in `RenderSettings`; nothing is left out without being counted.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import __version__
from bc2.align.samples.render_settings import RenderSettings, TrainOn
from bc2.align.samples.row_checks import row_faults, unrendered_faults
from bc2.align.samples.sample import Sample, sample_of
from bc2.align.samples.sample_store import (
    BadRow,
    SampleChunk,
    Samples,
    is_whole_chunk,
    merge,
    remove_leftovers,
)
from bc2.cache_folder import cache_folder
from bc2.console import Progress
from bc2.data.chats.chats import Chats
from bc2.data.chats.conversation import Conversation
from bc2.data.splits import Split
from bc2.data.workers import cores, in_order, worker_pool
from bc2.errors import DataError, IntegrityError, from_os_error
from bc2.files import lock_directory, make_directory, sha256_json
from bc2.tokenizer.chat import Chat, Message, Rendered
from bc2.tokenizer.chat_file import chat_from_json
from bc2.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from threading import Event

#: Raised when the same conversations would give other samples or other faults.
_VERSION = 1

#: Conversations of a chunk, which is rendered at once and kept if the rest is interrupted.
_CHUNK = 2048

#: Conversations that are worth a further process.
_WORTH_A_PROCESS = 3 * _CHUNK


@dataclass(frozen=True)
class ChatSource:
    """Where conversations and the layout come from, so that worker processes can open them too."""

    folder: Path
    """Of the artifact of kind chats."""
    digest: str
    """Of that artifact."""
    tokenizer: Path
    layout: Mapping[str, Any]
    """What ``chat.json`` holds."""

    def chat(self) -> Chat:
        """The layout. Raises: DataError if it does not go with the tokenizer."""
        return chat_from_json(self.layout, Tokenizer.load(self.tokenizer))


def rendered_chats(
    source: ChatSource,
    split: Split,
    settings: RenderSettings,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Samples:
    """The samples of a split: found in the cache, or made in as many processes as there are cores.

    An interrupted call leaves its finished chunks, with which the next one goes on.

    Args:
        progress: told of conversations as they are done.

    Raises:
        DataError: the layout does not go with the tokenizer.
        ResourceError: a worker was killed for memory, or the disk is full.
        IntegrityError: what was written cannot be read back.
    """
    folder = _folder(source, split, settings)
    make_directory(folder)
    # Those that find them read together.
    with lock_directory(folder, shared=True, wait=True):
        samples = _found(folder)
    if samples is None:
        samples = _made(source, split, settings, folder, workers, progress)
    if samples is None:
        raise IntegrityError(
            "the samples that were just written cannot be read back",
            where=str(folder),
            todo="look at the disk, or set BC2_CACHE to a directory on another one",
        )
    return samples


def _made(
    source: ChatSource, split: Split, settings: RenderSettings, folder: Path,
    workers: int | None, progress: Progress | None,
) -> Samples | None:  # fmt: skip
    """Make samples, unless another process has done so meanwhile; None: they cannot be read."""
    # The other ranks of this machine wait for the one that makes them.
    with lock_directory(folder, wait=True):
        samples = _found(folder)
        if samples is None:
            try:
                _make(source, split, settings, folder, workers, progress or (lambda *_: None))
            except OSError as error:
                doing = f"keeping samples in {folder} (BC2_CACHE names another place)"
                raise from_os_error(error, doing) from error
            samples = _found(folder)
        shutil.rmtree(_chunks(folder), ignore_errors=True)
        remove_leftovers(folder)
    return samples


def _found(folder: Path) -> Samples | None:
    """The samples in a folder of the cache, unless they are to be made (again)."""
    try:
        return Samples.open(folder)
    except ValueError:
        return None


def _folder(source: ChatSource, split: Split, settings: RenderSettings) -> Path:
    tokenizer = Tokenizer.load(source.tokenizer).digest
    key = [_VERSION, __version__, source.digest, tokenizer, dict(source.layout), asdict(settings)]
    return cache_folder() / "chats" / sha256_json(key)[:32] / split


def _make(
    source: ChatSource, split: Split, settings: RenderSettings, folder: Path,
    workers: int | None, progress: Progress,
) -> None:  # fmt: skip
    chunks = _chunks(folder)
    make_directory(chunks)
    count = Chats.open(source.folder).count(split)
    spans = [(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
    missing = [span for span in spans if not is_whole_chunk(_chunk_path(chunks, span))]
    left = sum(stop - start for start, stop in missing)
    progress(count - left)
    processes = min(workers or cores(), 1 + left // _WORTH_A_PROCESS)
    for done in _rendered(source, split, settings, chunks, missing, processes):
        progress(done)
    merge([_chunk_path(chunks, span) for span in spans], folder)


def _chunks(folder: Path) -> Path:
    return folder / "chunks"


def _chunk_path(chunks: Path, span: tuple[int, int]) -> Path:
    return chunks / f"{span[0]:010d}.npz"


def _rendered(
    source: ChatSource, split: Split, settings: RenderSettings, chunks: Path,
    spans: list[tuple[int, int]], processes: int,
) -> Iterator[int]:  # fmt: skip
    """Write the chunks of spans; give the conversations of each as it is there."""
    if processes == 1:
        chat = source.chat() if spans else None
        chats = Chats.open(source.folder)
        for span in spans:
            assert chat is not None
            yield write_chunk(chats, split, span, chat, settings, _chunk_path(chunks, span))
        return
    todo = "run the same again with more memory; what is finished is kept"
    with worker_pool(
        processes, "tokenising", todo, _begin_worker, source, split, settings, chunks
    ) as pool:
        yield from in_order(pool, _in_worker, spans, 2 * processes)


_worker: dict[str, Any] = {}


def _begin_worker(
    source: ChatSource, split: Split, settings: RenderSettings, chunks: Path, stop: Event
) -> None:
    _worker.update(
        chats=Chats.open(source.folder), split=split, chat=source.chat(), settings=settings,
        chunks=chunks,
    )  # fmt: skip


def _in_worker(span: tuple[int, int]) -> int:
    path = _chunk_path(_worker["chunks"], span)
    return write_chunk(
        _worker["chats"], _worker["split"], span, _worker["chat"], _worker["settings"], path
    )


def write_chunk(
    chats: Chats, split: Split, span: tuple[int, int], chat: Chat, settings: RenderSettings,
    path: Path,
) -> int:  # fmt: skip
    """Render the conversations from `span[0]` to before `span[1]` into a file; their number."""
    chunk = SampleChunk()
    for index, conversation in enumerate(chats.read(split, *span), span[0]):
        add_to_chunk(chunk, index, conversation, chat, settings)
    chunk.write(path)
    return span[1] - span[0]


def add_to_chunk(
    chunk: SampleChunk, index: int, conversation: Conversation, chat: Chat, settings: RenderSettings
) -> None:
    """Render one conversation: a sample, a fault, or too long."""
    conversation = replace(conversation, messages=marked(conversation.messages, settings.train_on))
    rendered, faults = checked(conversation, chat)
    if faults or rendered is None:
        chunk.faults += [BadRow(index, code, why) for code, why in faults]
        return
    sample = sample_of(rendered)
    if len(sample.tokens) > settings.window:
        kept = _first_rounds(conversation, chat, settings)
        if kept is None:
            chunk.too_long.append((index, len(sample.tokens)))
            return
        sample = kept
        chunk.cut.append(index)
    chunk.samples.append(sample)
    chunk.index.append(index)


def checked(
    conversation: Conversation, chat: Chat
) -> tuple[Rendered | None, list[tuple[str, str]]]:
    """A conversation rendered, and its faults as (code, why)."""
    rendered: Rendered | None
    try:
        rendered = chat.render(conversation.messages)
    except DataError as error:
        rendered, faults = None, unrendered_faults(conversation, error)
    else:
        faults = row_faults(conversation, rendered, chat)
    return rendered, [(fault.code, fault.why) for fault in faults]


def marked(messages: tuple[Message, ...], train_on: TrainOn) -> tuple[Message, ...]:
    """Messages of which all are learnt that do not say otherwise, if that is asked for."""
    if train_on == "assistant":
        return messages
    return tuple({"train": True, **message} for message in messages)


def _first_rounds(
    conversation: Conversation, chat: Chat, settings: RenderSettings
) -> Sample | None:
    """As many whole rounds from the beginning as fit and have something to learn; None: none."""
    if settings.too_long != "rounds":
        return None
    messages = conversation.messages

    @cache
    def until(end: int) -> Sample:
        return sample_of(chat.render(messages[:end]))

    ends = [number for number, one in enumerate(messages[:-1], 1) if one["role"] == "assistant"]
    # More rounds are never shorter: of a thousand, ten are tried.
    fit = bisect_right(ends, settings.window, key=lambda end: len(until(end).tokens))
    sample = until(ends[fit - 1]) if fit else None
    return sample if sample is not None and sample.trained else None
