"""Prompts kept on disk: built once for a suite, its shots, seed and a tokenizer, for all models.

A suite's folder is named by a key. It holds ``suite.json``, which says what tasks there are, and
for each task its prompts, written aside and renamed: what has its name is complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bc2.errors import DataError, ResourceError, RunFailed
from bc2.evaluate.prompts import Prompt, PromptFile, TaskPrompts, write_prompts
from bc2.files import lock_directory, make_directory, replace_durably, sync_file

_FACTS = "suite.json"

#: What a system says of a place that is not this user's to write.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

#: And of a disk without room.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PromptStore:
    """The prompts of one suite.

    Args:
        folder: of its key; it is made when something is written.

    Raises:
        RunFailed: this user may not read or write there; raised by its methods.
        ResourceError: there is no room; raised by its methods.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def facts(self) -> dict[str, Any] | None:
        """What was recorded of the suite; None if nothing was."""
        try:
            with self._allowed():
                facts: dict[str, Any] = json.loads((self.folder / _FACTS).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return facts

    def record(self, facts: dict[str, Any]) -> None:
        """Record what is known of the suite."""
        with self._allowed():
            make_directory(self.folder)
            replace_durably(self.folder / _FACTS, json.dumps(facts).encode())

    def find(self, prompts: TaskPrompts) -> PromptFile | None:
        """The stored prompts of a task, if all that are needed are there; no damaged file."""
        pattern = re.compile(re.escape(quote(prompts.task, safe="")) + r"-([0-9]+)\.parquet")
        for name in sorted(os.listdir(self.folder) if self.folder.is_dir() else ()):
            match = pattern.fullmatch(name)
            if match and int(match[1]) >= prompts.samples:
                with suppress(DataError):
                    return PromptFile(self.folder / name)
        return None

    def obtain(self, prompts: TaskPrompts, build: Callable[[], Iterator[Prompt]]) -> PromptFile:
        """The prompts of a task: stored ones, or those that are built now.

        Of several processes one builds them, and the others wait.
        """
        found = self.find(prompts)
        if found is not None:
            return found
        with self._building(prompts.task):
            found = self.find(prompts)
            if found is not None:
                return found
            name = f"{quote(prompts.task, safe='')}-{prompts.samples}.parquet"
            # One name for all processes: the next one replaces what a killed one left.
            aside = self.folder / f".{name}.tmp"
            try:
                with self._allowed():
                    write_prompts(aside, build())
                    sync_file(aside)
                    os.replace(aside, self.folder / name)
            finally:
                aside.unlink(missing_ok=True)
            return PromptFile(self.folder / name)

    @contextmanager
    def _building(self, task: str) -> Iterator[None]:
        folder = self.folder / "locks" / quote(task, safe="")
        with self._allowed():
            make_directory(folder)
        with lock_directory(folder, wait=True):
            yield

    @contextmanager
    def _allowed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise ResourceError(
                    "disk full while keeping prompts",
                    where=str(self.folder),
                    todo="free some space there, or set BC2_CACHE to a directory on another disk",
                ) from error
            if error.errno not in _REFUSED:
                raise
            raise RunFailed(
                f"prompts cannot be kept: {str(error.strerror).lower()}",
                where=str(error.filename or self.folder),
                todo="set BC2_CACHE to a directory that you may write to",
            ) from error
