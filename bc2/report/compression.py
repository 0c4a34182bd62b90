"""How well a tokenizer compresses the held-out text of its corpus, beside other models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bc2.data.corpus import read_corpus
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.tokenizer.report import CompressionReport, compression
from bc2.tokenizer.tokenizer_files import tokenizer_path


def compression_report(
    registry: Registry, tokenizer: Artifact, against: Sequence[Path]
) -> CompressionReport:
    """Tokens per byte and per character by language.

    Args:
        against: other tokenizers: files, or folders with one.

    Raises:
        RefError: the tokenizer's corpus is not registered here.
    """
    corpus = parent_of_kind(registry, tokenizer, "corpus")
    corpus.check_files()
    models = {tokenizer.title: tokenizer_path(tokenizer)}
    models.update({str(path): path for path in against})
    documents = read_corpus(corpus.path, "heldout")
    return compression(models, ((d.lang or d.source, d.text) for d in documents))
