"""[tokenizer] -> tokenizer: trained on a weighted sample of its corpus.

It stands here and not in `bc2.tokenizer`, which reads no corpus: this room reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.data.source_names import check_source_weights
from bc2.pipeline.stage import Input, Stage, Task
from bc2.recipe import Recipe
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE, TokenizerConfig


def _make(task: Task[TokenizerConfig]) -> Mapping[str, Any]:
    from bc2.console import progress
    from bc2.data.sample import sample_texts
    from bc2.tokenizer.train import train

    config, corpus = task.settings, task.inputs.one("corpus")
    corpus.check_files()
    texts = sample_texts(corpus.path, config.sample_bytes, config.weights, config.seed)
    with progress("sampling", config.sample_bytes, "bytes") as bar:
        trained = train(texts, config, progress=bar)
    (task.out / TOKENIZER_FILE).write_bytes(trained.model)
    return trained.facts


def _check(recipe: Recipe) -> None:
    if recipe.has(TokenizerConfig):
        weights = recipe.get(TokenizerConfig).weights
        check_source_weights(weights, recipe, "tokenizer", ("tokenizer", "weights"))


STAGE = Stage(
    kind="tokenizer",
    version=1,
    section=TokenizerConfig,
    inputs=(Input("corpus", lambda config: config.corpus),),
    make=_make,
    check=_check,
)
