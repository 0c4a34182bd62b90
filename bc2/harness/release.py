"""A benchmark's release: found in a folder, in bc2's cache or on the hub, read and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bc2.cache_folder import cache_folder
from bc2.errors import DataError, UsageError, nearest
from bc2.harness.hub_files import how_to_give, hub_snapshot
from bc2.harness.release_files import files_below, sha256_and_size
from bc2.harness.releases import (
    agieval,
    bbh,
    ceval,
    cfbench,
    cmmlu,
    fbbench,
    gaokao,
    gsm8k,
    humaneval,
    mbpp,
    medmcqa,
    medqa,
    mmlu,
)
from bc2.harness.releases.known import known_releases, release_digest
from bc2.harness.releases.source import Place, Source, Splits, Tables
from bc2.user_paths import expand_user

#: The folder of benchmarks where ``--data`` is not given.
VARIABLE = "BC2_BENCH_DATA"

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        mmlu.SOURCE,
        cmmlu.SOURCE,
        ceval.SOURCE,
        gsm8k.SOURCE,
        humaneval.SOURCE,
        mbpp.SOURCE,
        bbh.SOURCE,
        agieval.SOURCE,
        agieval.JEC_QA_SOURCE,
        gaokao.SOURCE,
        medqa.SOURCE,
        medmcqa.SOURCE,
    )
}

#: Releases whose texts are searched for in data. Those of judged answers `bc2 eval` does not ask.
SEARCHED: Mapping[str, Source] = {
    **SOURCES,
    **{source.name: source for source in (fbbench.SOURCE, cfbench.SOURCE)},
}


@dataclass(frozen=True)
class FileRecord:
    """A file that was read, an archive as a whole; its name is relative to the folder."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Release:
    """The rows of a benchmark.

    Attributes:
        source: key in `SOURCES`.
        origin: for people: the folder, or ``hub REPO at COMMIT``.
        files: those that were read.
        digest: of all rows, whichever kind of file they came in.
        differences: sentences: what was derived or left out, what is not as in the known release.
        datasets: lm-eval's dataset_path and dataset_name to split to rows, with the columns that
            lm-eval's tasks read.
    """

    source: str
    origin: str
    files: tuple[FileRecord, ...]
    digest: str
    differences: tuple[str, ...]
    datasets: Mapping[tuple[str, str | None], Splits]


def open_release(
    source: str, folder: Path | None, *, subsets: Collection[str] | None = None
) -> Release:
    """Find and read a release.

    Without a folder it is looked for in ``$BC2_BENCH_DATA``; if that is not set, in ``bench`` of
    bc2's cache, and then on the hub.

    Args:
        folder: that holds it, however deep; as ``--data``.
        subsets: to read; None: all that the release has.

    Raises:
        UsageError: no such source or subset.
        DataError: it cannot be found, lies in two places, or a file or row is wrong.
    """
    known = _source(source)
    asked = _asked(known, subsets)
    named = os.environ.get(VARIABLE)
    given = folder or (expand_user(named, VARIABLE) if named else None)
    if given is not None:
        found = _read(known, given, asked)
        if found is None:
            named = "--data" if folder else VARIABLE
            raise DataError(
                f"no files of {known.title} below this folder",
                where=str(given),
                todo=f"{named} must hold {known.expected}; docs/evaluation-data.md lists all files",
            )
        return found
    return _cached(known, asked) or _from_hub(known, asked)


def local_release(source: str, folder: Path | None = None) -> Release | None:
    """A release that lies on this machine, where `open_release` looks for it; None: none does.

    Args:
        source: key in `SEARCHED`.

    Raises:
        DataError: it lies in two places, or a file or row is wrong.
    """
    known, named = SEARCHED[source], os.environ.get(VARIABLE)
    given = folder or (expand_user(named, VARIABLE) if named else None)
    return _read(known, given, None) if given is not None else _cached(known, None)


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    guess = nearest(name, SOURCES)
    raise UsageError(
        f"no files of a benchmark {name!r} are known",
        todo=f"did you mean {guess!r}?" if guess else f"there is: {', '.join(SOURCES)}",
    )


def _asked(source: Source, subsets: Collection[str] | None) -> list[str] | None:
    if subsets is None or not source.subsets:
        return None
    for name in subsets:
        if name not in source.subsets:
            guess = nearest(name, source.subsets)
            raise UsageError(
                f"{source.title} has no subset {name!r}",
                todo=f"did you mean {guess!r}?" if guess else f"see `{source.name}`'s files",
            )
    return [name for name in source.subsets if name in subsets]


# -- where ---------------------------------------------------------------------------------


def _cached(source: Source, asked: list[str] | None) -> Release | None:
    try:
        folder = cache_folder() / "bench"
    except RuntimeError:  # a user without a home directory
        return None
    return _read(source, folder, asked) if folder.is_dir() else None


def _from_hub(source: Source, asked: list[str] | None) -> Release:
    hub = source.hub
    if hub is None:
        raise DataError(
            f"{source.title} is on no hub in a form that bc2 reads", todo=how_to_give(source)
        )
    snapshot = hub_snapshot(source, hub, source.subsets if asked is None else asked)
    origin = f"hub {hub.repo} at {snapshot.name}"
    found = _read(source, snapshot, asked, name=hub.repo, origin=origin)
    if found is None:
        raise DataError(
            f"the hub's files are not those of {source.title}",
            where=str(snapshot),
            todo=how_to_give(source),
        )
    return found


# -- what ----------------------------------------------------------------------------------


def _read(
    source: Source,
    folder: Path,
    asked: list[str] | None,
    *,
    name: str | None = None,
    origin: str | None = None,
) -> Release | None:
    """The release in a folder; None if it has none.

    Args:
        name: of the folder, for layouts that ask for one.
    """
    if not folder.is_dir():
        what = "this is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(what, where=str(folder), todo="give the folder that holds the benchmarks")
    front = name or folder.resolve().name
    files = files_below(folder, front, re.compile(source.archives))
    places = source.places({f"{front}/{file.name}": file for file in files})
    releases = [_release(source, place, asked, origin or str(folder)) for place in places]
    return _the_one(source, places, releases, whole=asked is None)


def _release(source: Source, place: Place, asked: list[str] | None, origin: str) -> Release:
    tables = source.read(place, place.subsets() if asked is None else asked)
    differences, _ = _compared(source, tables.datasets, whole=asked is None)
    return Release(
        source=source.name,
        origin=origin,
        files=_records(tables),
        digest=release_digest(tables.datasets),
        differences=(*tables.notes, *differences),
        datasets=tables.datasets,
    )


def _records(tables: Tables) -> tuple[FileRecord, ...]:
    stored = {file.stored: file.path for file in tables.files.values()}
    return tuple(FileRecord(name, *sha256_and_size(stored[name])) for name in sorted(stored))


def _compared(
    source: Source, datasets: Mapping[tuple[str, str | None], Splits], *, whole: bool
) -> tuple[list[str], int | None]:
    """What is to be said of some rows, and which known release they are (None: none of them)."""
    known = known_releases().get(source.name, ())
    compared = [one.differences(datasets, whole=whole) for one in known]
    for index, (one, differences) in enumerate(zip(known, compared, strict=True)):
        if not differences:
            return [one.note] if one.note else [], index
    return (compared[0] if compared else []), None


def _the_one(
    source: Source, places: Sequence[Place], releases: Sequence[Release], *, whole: bool
) -> Release | None:
    """Of the releases in several places the one that is known, or all if they are the same.

    Raises:
        DataError: they differ, and none of them is known.
    """
    if len({release.digest for release in releases}) <= 1:
        return next(iter(releases), None)
    known: dict[int, tuple[Place, Release]] = {}
    for place, release in zip(places, releases, strict=True):
        _, index = _compared(source, release.datasets, whole=whole)
        if index is not None:
            known.setdefault(index, (place, release))
    roots = [place.root.rstrip("/") for place in places]
    if not known:
        raise DataError(
            f"{source.title} lies in several places with different rows: {', '.join(roots)}",
            where=releases[0].origin,
            todo="give the folder of one of them with --data",
        )
    place, release = known[min(known)]
    others = ", ".join(root for root in roots if root != place.root.rstrip("/"))
    said = f"read from {place.root.rstrip('/')}; other rows lie in {others}"
    return replace(release, differences=(*release.differences, said))
