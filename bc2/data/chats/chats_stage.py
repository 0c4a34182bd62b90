"""[chats] -> chats: conversations read from their sources, split, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bc2.data import versions
from bc2.data.chats.chats_config import ChatsConfig
from bc2.pipeline.stage import Stage, Task


def _identity(config: ChatsConfig, home: Path) -> Mapping[str, Any]:
    """The settings, and the input files with their digests."""
    from bc2.data.inputs import inputs

    found = inputs(config, cache=home / "digests.json")
    return {
        **config.keyed(),
        "inputs": [file._asdict() for file in found],
        **versions.of_malformed(config.malformed),
    }


def _make(task: Task[ChatsConfig]) -> Mapping[str, Any]:
    from bc2.data.chats.make_chats import make_chats

    return make_chats(task.settings, task.out)


STAGE = Stage(
    kind="chats",
    version=versions.CHATS,
    section=ChatsConfig,
    make=_make,
    identity=_identity,
)
