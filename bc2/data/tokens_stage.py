"""[tokens] -> tokens: a corpus in its tokenizer's ids, cut into shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bc2.data import versions
from bc2.data.corpus_config import TokensConfig
from bc2.pipeline.stage import Input, Stage, Task
from bc2.tokenizer.tokenizer_files import tokenizer_path


def _identity(config: TokensConfig, home: Path) -> Mapping[str, Any]:
    """Nothing but the inputs: shards are the corpus in the tokenizer's ids."""
    return {}


def _make(task: Task[TokensConfig]) -> Mapping[str, Any]:
    from bc2.console import progress, warn
    from bc2.data.corpus import corpus_facts
    from bc2.data.tokenize import tokenize
    from bc2.tokenizer.round_trip import lost_sentence
    from bc2.tokenizer.tokenizer import Tokenizer

    corpus = task.inputs.one("corpus")
    corpus.check_files()
    model = tokenizer_path(task.inputs.one("tokenizer"))
    if lost := Tokenizer.load(model).lost:
        warn(f"{lost_sentence(lost)}: a model that is trained with it never sees them as they are")
    facts = corpus_facts(corpus.path)
    size = facts["train"]["bytes"] + facts["heldout"]["bytes"]
    with progress("tokenizing", size, "bytes") as bar:
        return tokenize(
            corpus.path, model, task.out, work=task.work, workers=task.settings.workers,
            progress=bar,
        )  # fmt: skip


STAGE = Stage(
    kind="tokens",
    version=versions.TOKENS,
    section=TokensConfig,
    inputs=(
        Input("corpus", lambda config: config.corpus),
        Input("tokenizer", lambda config: config.tokenizer),
    ),
    make=_make,
    identity=_identity,
    implied=True,
)
