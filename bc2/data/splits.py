"""The two parts of a corpus, and of token shards."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
