"""Answers to score: those of a registered artifact, or of a file in any form that bc2 reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bc2.align.reward.score_reader import answer_marked
from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.chats import Chats
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.make_chats import make_chats
from bc2.data.chats.read_chats import SourceReading, read_chats
from bc2.data.pairs.pairs import Pairs
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.data.splits import Split
from bc2.errors import DataError, RefError, UsageError
from bc2.registry import Artifact, Registry
from bc2.user_paths import expand_if_known

#: The name of the source that a file is.
_SOURCE = "data"


@dataclass(frozen=True)
class ScoredData:
    """Answers, each a conversation that ends with one, and the pairs that they make."""

    name: str
    """What it is, for a person."""
    answers: Chats
    split: Split
    pairs: Pairs | None
    """None: nothing is said of which answer is the better one."""

    def read(self) -> Iterator[Conversation]:
        """The answers in their order, marked: what is learnt of a conversation is the answer."""
        for one in self.answers.read(self.split):
            yield (
                one
                if self.pairs is not None
                else replace(one, messages=answer_marked(one.messages))
            )

    @property
    def count(self) -> int:
        """How many answers there are."""
        return self.answers.count(self.split)


@contextmanager
def open_data(registry: Registry, given: str, split: Split | None) -> Iterator[ScoredData]:
    """Open what ``--data`` names, and keep it while the block runs.

    Args:
        given: a file, a folder of files, or the ref of pairs or chats.
        split: of an artifact; None: what is held out.

    Raises:
        UsageError: a split of a file.
        RefError: neither a file nor an artifact of such a kind.
        DataError: it holds nothing that can be scored.
        IntegrityError: a file is not what was published.
    """
    path = expand_if_known(given)
    if path.exists() and not (path / "manifest.json").is_file():
        if split is not None:
            raise UsageError(
                "--split is of an artifact, and a file has none", where=given, todo="leave it out"
            )
        with tempfile.TemporaryDirectory(prefix="bc2-") as folder:
            yield _of_files(path, Path(folder))
        return
    artifact = _named(registry, given)
    with artifact.hold():
        yield _of_artifact(artifact, split or "heldout")


def _named(registry: Registry, given: str) -> Artifact:
    artifact = registry.resolve(given)
    if artifact.kind not in ("pairs", "chats"):
        raise RefError(
            f"{given!r} is a {artifact.kind}, and answers are needed",
            where=artifact.ref,
            todo="name a file, or what `bc2 data pairs` or `bc2 data chats` made",
        )
    return artifact


def _of_artifact(artifact: Artifact, split: Split) -> ScoredData:
    for name in artifact.files():
        artifact.file(name)
    pairs = Pairs.open(artifact.path) if artifact.kind == "pairs" else None
    answers = pairs.answers if pairs is not None else Chats.open(artifact.path)
    if not answers.count(split):
        other = "train" if split == "heldout" else "heldout"
        raise DataError(
            f"{artifact.title} has no answers in its split {split!r}",
            where=artifact.ref,
            todo=f"score the other one: --split {other}",
        )
    return ScoredData(f"{artifact.title}, {split}", answers, split, pairs)


def _of_files(path: Path, folder: Path) -> ScoredData:
    """Read files into a folder as the stage of their kind does, with nothing held out."""
    from bc2.data.pairs.make_pairs import make_pairs

    if _compares(path):
        source = PairSourceConfig(name=_SOURCE, path=str(path))
        make_pairs(PairsConfig(sources=(source,), heldout_fraction=0), folder)
        pairs = Pairs.open(folder)
        return ScoredData(str(path), pairs.answers, "train", pairs)
    chats = ChatSourceConfig(name=_SOURCE, path=str(path))
    make_chats(ChatsConfig(sources=(chats,), heldout_fraction=0), folder)
    return ScoredData(str(path), Chats.open(folder), "train", None)


def _compares(path: Path) -> bool:
    """Whether the first row of a file is of answers to be compared: no conversation alone."""
    source = ChatSourceConfig(name=_SOURCE, path=str(path), max_rows=1)
    config = ChatsConfig(sources=(source,), malformed="skip", max_malformed=1)
    found, skipped = SourceReading(), SkippedRows(_SOURCE, "skip")
    with suppress(DataError):
        for _ in read_chats(source, config, found, skipped):
            pass
    several = {"responses", "answers"} & found.ignored.keys()
    return bool(several or skipped.counts["preference"] or skipped.counts["no_format"])
