"""How well a tokenizer compresses the held-out text of its corpus, beside other models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bc2.data.corpus import corpus_facts, read_corpus
from bc2.data.corpus_config import CorpusConfig
from bc2.errors import DataError, RecipeError
from bc2.pipeline.sources import recipe_making
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.tokenizer.report import CompressionReport, compression
from bc2.tokenizer.tokenizer_files import tokenizer_path

_NOTHING_HELD_OUT = "the corpus has no held-out text, on which tokenizers are compared"
_HOLD_OUT = "set corpus.heldout_fraction above 0, such as 0.01, and make it again"


def check_holds_out(recipe: Recipe) -> None:
    """Before a tokenizer is trained, check that a recipe's corpus will have held-out text.

    Raises:
        RecipeError: it holds out none.
    """
    making = recipe_making("corpus", recipe, "tokenizer")
    if making is not None and not making.get(CorpusConfig).heldout_fraction:
        where = making.where(("corpus", "heldout_fraction"))
        raise RecipeError(_NOTHING_HELD_OUT, where=where, todo=_HOLD_OUT)


def compression_report(
    registry: Registry, tokenizer: Artifact, against: Sequence[Path]
) -> CompressionReport:
    """Tokens per byte and per character by language.

    Args:
        against: other tokenizers: files, or folders with one.

    Raises:
        RefError: the tokenizer's corpus is not registered here.
        DataError: it has no held-out text.
    """
    corpus = parent_of_kind(registry, tokenizer, "corpus")
    corpus.check_files()
    if not corpus_facts(corpus.path)["heldout"]["documents"]:
        raise DataError(_NOTHING_HELD_OUT, where=corpus.title, todo=_HOLD_OUT)
    models = {tokenizer.title: tokenizer_path(tokenizer)}
    models.update({str(path): path for path in against})
    documents = read_corpus(corpus.path, "heldout")
    return compression(models, ((d.lang or d.source, d.text) for d in documents))
