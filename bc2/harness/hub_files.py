"""The files of a release from the hub, as files: archives and loading scripts are no obstacle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bc2.console import note
from bc2.errors import DataError
from bc2.harness.releases.source import Hub, Source
from bc2.streams import first_line

#: Seconds that the hub has to answer before it counts as out of reach.
_ANSWER_S = 5.0


def hub_snapshot(source: Source, hub: Hub, subsets: Sequence[str]) -> Path:
    """The folder of a release in the hub's cache; its name is the commit.

    What is in the cache is taken as it is: the hub is only asked for what is not.

    Raises:
        DataError: it is not in the cache, and the hub is switched off, out of reach or without it.
    """
    import huggingface_hub
    import huggingface_hub.constants

    patterns = [pattern.format(subset=name) for pattern in hub.patterns for name in subsets or [""]]
    kept = _kept(hub, patterns)
    if kept is not None:
        return kept
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        # Asked by itself first, since the download waits longer for an answer.
        huggingface_hub.HfApi().dataset_info(hub.repo, revision=hub.revision, timeout=_ANSWER_S)
        note(f"fetching {source.title} from {address(hub)}")
        return Path(
            huggingface_hub.snapshot_download(
                hub.repo,
                repo_type="dataset",
                revision=hub.revision,
                allow_patterns=patterns,
                etag_timeout=_ANSWER_S,
            )
        )
    except Exception as error:  # the hub's own and its HTTP library's: no common class
        raise DataError(
            f"{source.title} is not in the hub's cache and cannot be fetched: {first_line(error)}",
            where=address(hub),
            todo=how_to_give(source),
        ) from error


def address(hub: Hub) -> str:
    """Where a person finds the release."""
    return f"https://huggingface.co/datasets/{hub.repo}"


def how_to_give(source: Source) -> str:
    """What to do where a release cannot be had."""
    return (
        f"put {source.expected} into a folder and give it with --data DIR, or in BC2_BENCH_DATA; "
        "docs/evaluation-data.md lists all files"
    )


def _kept(hub: Hub, patterns: Sequence[str]) -> Path | None:
    """The snapshot in the hub's cache, if it has a file for every pattern."""
    import huggingface_hub.constants

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    repo = folder / f"datasets--{hub.repo.replace('/', '--')}"
    try:
        commit = (repo / "refs" / hub.revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repo / "snapshots" / commit
    return snapshot if all(any(snapshot.glob(pattern)) for pattern in patterns) else None
