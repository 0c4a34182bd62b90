"""What a reader of a release is: which files it looks for, and what it makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bc2.harness.release_files import ReleaseFile

Row = dict[str, Any]

#: Split to rows.
Splits = dict[str, list[Row]]


@dataclass(frozen=True)
class Layout:
    """How the files of a release may lie.

    Attributes:
        pattern: of a file's path, with the name of the folder that was given in front. Groups:
            ``root``, the same for all files of one place; ``subset`` and ``split``, where the
            path says them.
        split: where the path does not say it.
    """

    pattern: str
    split: str = ""

    def place_of(self, path: str) -> tuple[str, str, str] | None:
        """The root, subset and split of a path; None if it is no file of this layout."""
        match = re.fullmatch(self.pattern, path)
        if match is None:
            return None
        groups = match.groupdict()
        return groups["root"] or "", groups.get("subset") or "", groups.get("split") or self.split


def names(text: str) -> tuple[str, ...]:
    """The names in a text, which are parted by white space."""
    return tuple(text.split())


def under(*words: str) -> str:
    """The root of files with general names: a folder or archive above them is named like this."""
    return rf"(?P<root>(?:.*/)?[^/]*(?i:{'|'.join(words)})[^/]*/(?:.*/)?)"


#: The root of files with names of their own.
ANYWHERE = r"(?P<root>(?:.*/)?)"

#: The end of a file that the hub writes, which may be one of several.
PARQUET = r"-\d+-of-\d+\.parquet"


@dataclass(frozen=True)
class Place:
    """A release that was found.

    Attributes:
        root: of its files, with the name of the folder that was given in front.
        files: by subset and split.
        listing: all files of the folder, by the path that layouts match.
    """

    root: str
    files: Mapping[tuple[str, str], Sequence[ReleaseFile]]
    listing: Mapping[str, ReleaseFile]

    def splits(self) -> set[str]:
        """The splits that any subset has."""
        return {split for _, split in self.files}

    def subsets(self) -> list[str]:
        """The subsets that have any split, sorted."""
        return sorted({subset for subset, _ in self.files})


@dataclass
class Tables:
    """The rows that a reader made of a place."""

    datasets: dict[tuple[str, str | None], Splits] = field(default_factory=dict)
    """By lm-eval's dataset_path and dataset_name."""
    notes: list[str] = field(default_factory=list)
    """What was derived or left out, as sentences."""
    files: dict[str, ReleaseFile] = field(default_factory=dict)
    """The files that were read, by name."""

    def rows_of(
        self, files: Sequence[ReleaseFile], read: Callable[[ReleaseFile], Iterator[Row]]
    ) -> list[Row]:
        """The rows of a split's files, one after another."""
        self.files.update((file.name, file) for file in files)
        return [row for file in files for row in read(file)]


@dataclass(frozen=True)
class Hub:
    """Where the hub has a release.

    Attributes:
        repo: of the kind dataset.
        patterns: of the files that are needed; ``{subset}`` stands for each subset.
    """

    repo: str
    patterns: tuple[str, ...]
    revision: str = "main"


@dataclass(frozen=True)
class Source:
    """A release that bc2 can read.

    Attributes:
        subsets: every name that lm-eval knows; empty: it is one set.
        sure: subsets whose files cannot be another release's; empty: that is so for all.
        file_names: where files are named otherwise: what their path says to the subset.
        archives: zip archives are looked into if this is found in their path.
        expected: the files, for people.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    read: Callable[[Place, Sequence[str]], Tables]
    expected: str
    archives: str
    subsets: tuple[str, ...] = ()
    sure: frozenset[str] = frozenset()
    file_names: Mapping[str, str] = field(default_factory=dict)
    hub: Hub | None = None

    def places(self, files: Mapping[str, ReleaseFile]) -> list[Place]:
        """Where a release may be among files, sorted by root.

        Args:
            files: by their path, with the name of the folder that was given in front.
        """
        found: dict[tuple[int, str, str], dict[tuple[str, str], list[ReleaseFile]]] = {}
        for path, file in files.items():
            for index, layout in enumerate(self.layouts):
                place = layout.place_of(path)
                if place is None:
                    continue
                root, name, split = place
                subset = self.file_names.get(name, name)
                if not self.subsets or subset in self.subsets:
                    # A compressed file beside the plain one is another place.
                    one = found.setdefault((index, root, file.path.suffix), {})
                    one.setdefault((subset, split), []).append(file)
                    break
        return [
            Place(root, place, files)
            for (_, root, _), place in sorted(found.items(), key=lambda item: item[0][1])
            if not self.sure or any(subset in self.sure for subset, _ in place)
        ]
