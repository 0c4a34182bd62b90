"""A ladder's runs one after another: what is there is found, what fails is marked.

Training itself is handed in, so that this room stays below the one that starts ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bc2.console import board, note, warn
from bc2.errors import Bc2Error, ResourceError, RunFailed
from bc2.registry import Artifact, Registry
from bc2.report.number_format import duration
from bc2.scaling.ladder import Ladder, LadderMember
from bc2.train.logs.runs import RunFolder, latest_attempts

#: Finds or trains a member: its finished checkpoint, and whether it was made now.
Train = Callable[[LadderMember], tuple[Artifact, bool]]

Status = Literal["waiting", "training", "finished", "failed"]


@dataclass
class LadderEntry:
    """A member and what became of it."""

    member: LadderMember
    status: Status = "waiting"
    artifact: Artifact | None = None
    made: bool = False
    """By this command, and not found."""
    reason: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """Of all attempts at the run, from their starts to their last rows; None if not known."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its checkpoint's manifest says of it."""
        return self.artifact.manifest.facts if self.artifact else {}


@dataclass
class LadderProgress:
    """A ladder on the way: its entries, and how long what is left will take."""

    ladder: Ladder
    entries: list[LadderEntry]
    assumed_flops: float
    """FLOP/s that are assumed until a member has ended."""
    assumption: str
    """Where they come from, for a person."""
    epoch_tokens: int | None = None
    """Tokens of one pass over the training split; None before they are known."""
    measured_flops: float | None = None
    """FLOP/s of the last member that this command trained, evaluations and start included."""

    @classmethod
    def of(
        cls, ladder: Ladder, members: Sequence[LadderMember], flops: float, assumption: str
    ) -> LadderProgress:
        return cls(ladder, [LadderEntry(member) for member in members], flops, assumption)

    @property
    def failed(self) -> list[LadderEntry]:
        return [entry for entry in self.entries if entry.status == "failed"]

    @property
    def flops(self) -> int:
        """Of all members together."""
        return sum(entry.member.flops for entry in self.entries)

    def expected_s(self, entry: LadderEntry) -> float:
        """Seconds that training a member takes, by its counted FLOPs."""
        return entry.member.flops / (self.measured_flops or self.assumed_flops)

    def left_s(self) -> float:
        """Seconds that what has not ended takes."""
        left = [one for one in self.entries if one.status in ("waiting", "training")]
        return sum(map(self.expected_s, left))

    def epochs(self, entry: LadderEntry) -> float | None:
        """Passes over the training split; None before its size is known."""
        return entry.member.tokens / self.epoch_tokens if self.epoch_tokens else None


@dataclass
class LadderRun:
    """Trains the entries of a ladder in their order."""

    registry: Registry
    progress: LadderProgress
    train: Train
    draw: Callable[[LadderProgress], Any]
    """Draws the live table."""
    _show: Callable[[Any], None] = field(default=lambda drawn: None, init=False)

    def run(self) -> None:
        """Train, or find, each member; those that fail are marked, and the others go on.

        Raises:
            Interrupted: a signal came; the run under way is saved.
            ResourceError: out of memory or disk: the others would end alike.
        """
        with board() as self._show:
            for number, entry in enumerate(self.progress.entries, 1):
                self._one(entry, f"[{number}/{len(self.progress.entries)}] {entry.member.name}")
        self._untag_leftovers()

    def _one(self, entry: LadderEntry, title: str) -> None:
        entry.status = "training"
        self._show(self.draw(self.progress))
        expected = duration(self.progress.expected_s(entry))
        note(f"{title}: {entry.member.tokens:,} tokens, about {expected}")
        try:
            entry.artifact, entry.made = self.train(entry.member)
        except Bc2Error as error:
            if stops_the_ladder(error):
                raise
            self._fail(entry, error)
        else:
            self._finish(entry)
        self._show(self.draw(self.progress))
        note(f"{title}: {self._outcome(entry)}")

    def _finish(self, entry: LadderEntry) -> None:
        assert entry.artifact is not None
        entry.status = "finished"
        entry.seconds = _seconds(self.registry, entry.artifact)
        if entry.made and entry.seconds:
            self.progress.measured_flops = entry.member.flops / entry.seconds
        self._tag(entry)

    def _tag(self, entry: LadderEntry) -> None:
        """Tag a finished member; it may have been trained under another name."""
        assert entry.artifact is not None
        tag = self.progress.ladder.tag(entry.member)
        mine = {one.artifact.digest for one in self.progress.entries if one.artifact} - {
            entry.artifact.digest
        }
        for other in self._tagged(entry.artifact.name, tag):
            if other.digest in mine:
                warn(
                    f"{entry.artifact.ref} and {other.ref} are both called {other.name}: the tag "
                    f"{tag} stays at {other.ref}, name the other by its digest"
                )
                return
        self.registry.tag(entry.artifact, tag)

    def _fail(self, entry: LadderEntry, error: Bc2Error) -> None:
        """Mark a failed member; an earlier run of its name is no member any more."""
        entry.status, entry.reason = "failed", " ".join(str(error).split())
        tag = self.progress.ladder.tag(entry.member)
        for earlier in self._tagged(entry.member.name, tag):
            self.registry.untag(earlier, tag)
            note(f"{earlier.title} ({earlier.ref}) is of other settings: it loses the tag {tag}")

    def _tagged(self, name: str, tag: str) -> list[Artifact]:
        return [one for one in self.registry.list("checkpoint", name) if tag in one.tags]

    def _outcome(self, entry: LadderEntry) -> str:
        """What became of a member, in a line."""
        if entry.status == "failed":
            return f"failed: {entry.reason}"
        loss = entry.facts.get("heldout_loss")
        told = [f"held-out {loss:.4f} nats/token" if loss is not None else "not measured"]
        told += [duration(entry.seconds)] if entry.seconds else []
        waiting = sum(one.status == "waiting" for one in self.progress.entries)
        if waiting:
            told.append(f"{waiting} left, about {duration(self.progress.left_s())}")
        return f"{'finished' if entry.made else 'found'}, {', '.join(told)}"

    def _repeats_one(self, other: Artifact) -> bool:
        """Whether a run differs from a member in its seed alone, as far as that is there."""
        base, _, seed = other.name.rpartition("-seed")
        members = {one.name for one in self.progress.ladder.members}
        if base not in members or not seed.isdigit():
            return False
        here = [one.artifact for one in self.progress.entries if one.member.name == base]
        theirs = _but_for_seed(other.manifest.recipe)
        return all(one is None or _but_for_seed(one.manifest.recipe) == theirs for one in here)

    def _untag_leftovers(self) -> None:
        """Take the tag from runs that are no members any more: the recipe was changed since."""
        ladder = self.progress.ladder
        names = [one.name for one in ladder.members]
        found = {one.artifact.digest for one in self.progress.entries if one.artifact}
        for other in self.registry.list("checkpoint", finished=True):
            if ladder.name not in other.tags or other.digest in found:
                continue
            if other.name not in names and not self._repeats_one(other):
                self.registry.untag(other, ladder.name)
                note(f"{other.title} ({other.ref}) is no member any more: it loses the tag")


def _but_for_seed(recipe: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a recorded recipe says of a run, but for its seed."""
    return recipe["model"], {**recipe["pretrain"], "seed": None}


def stops_the_ladder(error: Bc2Error) -> bool:
    """Whether the members after a failed one would fail alike: a signal, a full disk."""
    return error.exit_code == ResourceError.exit_code or error.exit_code > 128


def _seconds(registry: Registry, artifact: Artifact) -> float | None:
    """How long the run of a checkpoint took, as far as its folder is here."""
    attempts = RunFolder.of(registry, artifact.name, artifact.key).attempts()
    return sum(attempt.seconds for attempt in latest_attempts(attempts)) if attempts else None


def check_all_finished(progress: LadderProgress) -> None:
    """Raises: RunFailed: members failed; it names them."""
    failed = progress.failed
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(progress.entries)} members of the ladder failed: "
            f"{failed[0].member.name}: {failed[0].reason}",
            where=", ".join(entry.member.name for entry in failed),
            todo="run the same again to go on with them, or give them other settings",
        )
