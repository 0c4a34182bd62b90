"""The releases whose rows are known, and what differs from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bc2.files import sha256_json
from bc2.harness.releases.source import Splits

#: Hex digits of the digest of one dataset's rows: enough to tell releases apart.
_DIGITS = 16

#: Datasets that are named where many differ.
_NAMED = 3


@dataclass(frozen=True)
class KnownRelease:
    """The rows that one release has.

    Attributes:
        release: which one it is, for people.
        note: what is to be said of it, if anything.
        datasets: "path/name" to the rows of each split and ``"digest"``.
    """

    release: str
    note: str
    datasets: Mapping[str, Mapping[str, Any]]

    def differences(
        self, datasets: Mapping[tuple[str, str | None], Splits], *, whole: bool
    ) -> list[str]:
        """What of some datasets is not as here, as sentences.

        Args:
            whole: whether it matters which are missing.
        """
        found = {dataset_key(*key): splits for key, splits in datasets.items()}
        missing = [key for key in self.datasets if key not in found]
        counts = [key for key, splits in found.items() if self._rows(key) != _rows(splits)]
        others = [
            key
            for key, splits in found.items()
            if key not in counts and self.datasets[key]["digest"] != dataset_digest(splits)
        ]
        said = []
        if missing and whole:
            said.append(f"missing of {self.release}: {_named(missing)}")
        if counts:
            told = [f"{key} {_told(found[key])} (known: {self._told(key)})" for key in counts]
            said.append(f"another number of rows than {self.release}: {_named(told)}")
        if others:
            said.append(f"other rows than {self.release}: {_named(others)}")
        return said

    def _rows(self, key: str) -> dict[str, int]:
        known = self.datasets.get(key, {})
        return {split: rows for split, rows in known.items() if split != "digest"}

    def _told(self, key: str) -> str:
        rows = self._rows(key)
        return ", ".join(f"{split} {rows[split]:,}" for split in sorted(rows)) or "none"


@lru_cache(maxsize=1)
def known_releases() -> Mapping[str, Sequence[KnownRelease]]:
    """Of each source, the preferred one first."""
    written = json.loads((Path(__file__).parent / "known.json").read_text("utf-8"))
    return {
        source: [
            KnownRelease(one["release"], one.get("note", ""), one["datasets"]) for one in releases
        ]
        for source, releases in written.items()
    }


def dataset_key(path: str, name: str | None) -> str:
    """A dataset in one string."""
    return f"{path}/{name}" if name else path


def release_digest(datasets: Mapping[tuple[str, str | None], Splits]) -> str:
    """Hex SHA-256 of all rows, the same whichever kind of file they were read from."""
    return sha256_json({dataset_key(*key): _plain(splits) for key, splits in datasets.items()})


def dataset_digest(splits: Splits) -> str:
    """The first hex digits of the SHA-256 of one dataset's rows."""
    return sha256_json(_plain(splits))[:_DIGITS]


def _plain(value: Any) -> Any:
    """A value with the line ends that every kind of file keeps."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _rows(splits: Splits) -> dict[str, int]:
    return {split: len(rows) for split, rows in splits.items()}


def _told(splits: Splits) -> str:
    return ", ".join(f"{split} {len(splits[split]):,}" for split in sorted(splits))


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
