"""``--push hf://OWNER/NAME``: an export uploaded to the hub, in one commit."""

from __future__ import annotations

import re
from pathlib import Path

from bc2.console import note
from bc2.errors import RunFailed, UsageError
from bc2.registry import Artifact
from bc2.registry.draft import MANIFEST
from bc2.registry.refs import HUB
from bc2.streams import first_line

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def repository(target: str) -> str:
    """OWNER/NAME of ``hf://OWNER/NAME``.

    Raises:
        UsageError: it is none; or the hub is switched off.
    """
    repo = target.removeprefix(HUB)
    if not target.startswith(HUB) or not _REPO.fullmatch(repo):
        raise UsageError(
            f"{target!r} is no repository of a hub", where="--push", todo="write hf://OWNER/NAME"
        )
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set", where="--push", todo="unset it to upload")
    return repo


def check_access(repo: str) -> None:
    """See that the hub answers and knows this user, before hours of work.

    Raises:
        RunFailed: it does not.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # the hub's own and its HTTP library's: no common class
        raise _refused(repo, error) from error


def push(export: Artifact, repo: str) -> str:
    """Upload an export's files; a repository that is not there is made, private.

    Returns:
        The address of the commit.

    Raises:
        RunFailed: the hub refused, or does not answer. The export stays registered.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    note(f"uploading {export.title} to {repo}")
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=Path(export.path),
            ignore_patterns=[MANIFEST],
            commit_message=f"{export.title} {export.ref}",
        )
    except Exception as error:  # as above
        raise _refused(repo, error, export) from error
    return str(done.commit_url)


def _refused(repo: str, error: Exception, export: Artifact | None = None) -> RunFailed:
    again = "" if export is None else f"; {export.title} stays registered"
    return RunFailed(
        f"cannot upload to {repo}: {first_line(error)}{again}",
        where=f"{HUB}{repo}",
        todo="check the name, the network and HF_TOKEN, and run the same command again",
    )
