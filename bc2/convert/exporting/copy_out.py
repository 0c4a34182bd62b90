"""``--out``: an export's files copied to where a user wants them, all or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from bc2.errors import ResourceError, UsageError, from_os_error
from bc2.files import sync_directory, sync_file
from bc2.registry import Artifact
from bc2.registry.draft import MANIFEST
from bc2.registry.staging import existing


def check_target(out: Path, size: int) -> None:
    """See that a folder can be made, before anything is.

    Raises:
        UsageError: something is there, or no folder can be made there.
        ResourceError: its disk has not so many bytes free.
    """
    if out.exists() or out.is_symlink():
        raise UsageError("exists", where=str(out), todo="name a folder that is not there yet")
    above = existing(out.absolute())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            "no folder can be made there",
            where=str(out),
            todo=f"{above} is a folder that you may not write to"
            if above.is_dir()
            else f"{above} is no folder",
        )
    try:
        free = shutil.disk_usage(above).free
    except OSError as error:
        raise from_os_error(error, "--out") from error
    if size > free:
        raise ResourceError(
            f"{size / 1e9:,.1f} GB are to be written, and {free / 1e9:,.1f} GB are free",
            where=str(out),
            todo="name a folder on another disk",
        )


def copy_out(export: Artifact, out: Path) -> None:
    """Copy an export's files into a folder, which appears when all are there.

    Raises:
        UsageError: the folder has appeared meanwhile.
        Bc2Error: the disk is full or may not be written. Nothing is left behind.
    """
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for name in (name for name in export.files() if name != MANIFEST):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(export.path / name, aside / name)
            sync_file(aside / name)
        sync_directory(aside)
        if out.exists():
            raise UsageError("exists", where=str(out), todo="name another folder")
        os.rename(aside, out)
    except OSError as error:
        raise from_os_error(error, f"copying to {out}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
