"""``hf://OWNER/NAME@REVISION``: a model's files from the hub, by its commit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bc2.console import note, warn
from bc2.errors import DataError, UsageError
from bc2.registry.refs import HUB
from bc2.streams import first_line

_SOURCE = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")

#: Seconds that the hub has to answer before it counts as out of reach.
_ANSWER_S = 10.0

#: What is fetched beside the weights. No code: bc2 runs none.
_TEXTS = ("*.json", "*.jinja", "tokenizer.model")


@dataclass(frozen=True)
class HubModel:
    """A model on the hub."""

    repo: str
    """``OWNER/NAME``."""
    revision: str
    """A branch, a tag or a commit."""

    @classmethod
    def parse(cls, source: str) -> HubModel:
        """Raises: UsageError: it is no ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``."""
        found = _SOURCE.fullmatch(source)
        if found is None:
            raise UsageError(
                f"{source!r} names no model of the hub", todo="write hf://OWNER/NAME@REVISION"
            )
        return cls(found[1], found[2] or "main")

    def names(self, commit: str) -> tuple[str, ...]:
        """What it is called: by a commit, and as it was asked for."""
        asked = f"{HUB}{self.repo}@{self.revision}"
        return tuple(dict.fromkeys([f"{HUB}{self.repo}@{commit}", asked]))

    @property
    def name(self) -> str:
        """Without its owner."""
        return self.repo.partition("/")[2]

    def fetch(self) -> tuple[Path, str]:
        """The folder of the model's files in the hub's cache, and its commit.

        Raises:
            DataError: it is not in the cache, and the hub is switched off, out of reach, or has
                no such model, or none that this user may have.
        """
        import huggingface_hub
        import huggingface_hub.constants
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return self._kept("HF_HUB_OFFLINE is set")
        try:
            found = huggingface_hub.HfApi().model_info(
                self.repo, revision=self.revision, timeout=_ANSWER_S
            )
            if not sys.stderr.isatty():
                disable_progress_bars()  # they are for terminals
            names = [one.rfilename for one in found.siblings or ()]
            note(f"fetching {self.repo} at {found.sha} from the hub")
            folder = huggingface_hub.snapshot_download(
                self.repo, revision=found.sha, allow_patterns=_patterns(names)
            )
        except Exception as error:  # the hub's own and its HTTP library's: no common class
            return self._kept(first_line(error))
        return Path(folder), str(found.sha)

    def _kept(self, why: str) -> tuple[Path, str]:
        """What the cache has."""
        import huggingface_hub

        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    self.repo, revision=self.revision, local_files_only=True
                )
            )
        except Exception as error:  # as above
            raise DataError(
                f"{self.repo} at {self.revision} is not in the hub's cache and cannot be fetched: "
                f"{why}",
                where=f"{HUB}{self.repo}@{self.revision}",
                todo="check the name, the network and HF_TOKEN; or import a folder with its files",
            ) from error
        if not _COMMIT.fullmatch(self.revision):
            warn(f"the hub is not asked ({why}): taking {self.revision} as it was last fetched")
        return folder, folder.name


def _patterns(names: Iterable[str]) -> list[str]:
    """What of a model's files is fetched: its weights once, in the safer of two formats."""
    tops = [name for name in names if "/" not in name]
    safe = [name for name in tops if re.fullmatch(r"model.*\.safetensors", name)]
    weights = safe or [name for name in tops if re.fullmatch(r"pytorch_model.*\.bin", name)]
    return [*_TEXTS, *weights]
