"""How few tokens a tokenizer needs for a text, beside other tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bc2.errors import DataError
from bc2.tokenizer.tokenizer import Tokenizer

#: The row that sums every group.
TOTAL = "total"

_BATCH_CHARS = 4_000_000


@dataclass
class Row:
    """One model on one group of texts (a language or a source)."""

    model: str
    group: str
    vocab_size: int
    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0

    @property
    def tokens_per_byte(self) -> float:
        """The compression rate of the paper's Table 2 in absolute terms: lower is better."""
        return self.tokens / self.bytes if self.bytes else 0.0

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters if self.characters else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else 0.0

    def add(self, other: Row) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.bytes += other.bytes
        self.tokens += other.tokens
        self.unknown += other.unknown

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tokens_per_byte": self.tokens_per_byte,
            "tokens_per_character": self.tokens_per_character,
            "bytes_per_token": self.bytes_per_token,
        }


@dataclass(frozen=True)
class CompressionReport:
    """Rows by the name of the group, within each in the order of the models; totals last."""

    rows: Sequence[Row]
    lost: Mapping[str, tuple[str, ...]]
    """By the name of the model the kinds of text that it does not give back (`Tokenizer.lost`):
    what is left out of a text costs no tokens. Models that give back everything are not here."""

    columns = (
        "group",
        "tokenizer",
        "pieces",
        "tokens",
        "tokens/byte",
        "tokens/character",
        "bytes/token",
        "unknown",
    )

    def row(self, model: str, group: str = TOTAL) -> Row:
        return next(row for row in self.rows if (row.model, row.group) == (model, group))

    def to_json(self) -> list[dict[str, Any]]:
        return [row.to_json() for row in self.rows]

    def cells(self) -> list[tuple[object, ...]]:
        """Rows for `bc2.console.table`, under `columns`."""
        return [
            (
                row.group,
                row.model,
                row.vocab_size,
                row.tokens,
                f"{row.tokens_per_byte:.4f}",
                f"{row.tokens_per_character:.4f}",
                f"{row.bytes_per_token:.3f}",
                row.unknown,
            )
            for row in self.rows
        ]


def compression(
    models: Mapping[str, str | Path | Tokenizer],
    texts: Iterable[tuple[str, str]],
    *,
    threads: int = 1,
) -> CompressionReport:
    """Encode texts with every model and count.

    Tokens are counted without beginning or end of text, document by document. A model
    without byte fallback writes a run of characters it has not got as one unknown token,
    which flatters its rate: `Row.unknown` says how many. So does one that drops text.

    Args:
        models: a name for each tokenizer, or for its path.
        texts: pairs of group and text; read once, a few megabytes at a time.

    Raises:
        DataError: a path that is no tokenizer, or no text at all.
    """
    loaded = {
        name: model if isinstance(model, Tokenizer) else Tokenizer.load(model)
        for name, model in models.items()
    }
    rows: dict[tuple[str, str], Row] = {}
    for group, batch in _batches(texts):
        for name, tokenizer in loaded.items():
            row = rows.setdefault((group, name), Row(name, group, tokenizer.vocab_size))
            row.add(_count(name, group, tokenizer, batch, threads))
    if not rows:
        raise DataError("no text to compare tokenizers on", todo="check the corpus")
    totals = {name: Row(name, TOTAL, t.vocab_size) for name, t in loaded.items()}
    for row in rows.values():
        totals[row.model].add(row)
    order = list(loaded)
    parts = sorted(rows.values(), key=lambda row: (row.group, order.index(row.model)))
    lost = {name: tokenizer.lost for name, tokenizer in loaded.items() if tokenizer.lost}
    return CompressionReport([*parts, *totals.values()], lost)


def _count(name: str, group: str, tokenizer: Tokenizer, batch: list[str], threads: int) -> Row:
    arrays = tokenizer.encode_arrays(batch, threads)
    return Row(
        name,
        group,
        tokenizer.vocab_size,
        documents=len(batch),
        characters=sum(map(len, batch)),
        bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in batch),
        tokens=sum(map(len, arrays)),
        unknown=sum(int((ids == tokenizer.unk_id).sum()) for ids in arrays),
    )


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Texts of one group at a time, some megabytes each."""
    waiting: dict[str, list[str]] = {}
    size: dict[str, int] = {}
    for group, text in texts:
        waiting.setdefault(group, []).append(text)
        size[group] = size.get(group, 0) + len(text)
        if size[group] >= _BATCH_CHARS:
            yield group, waiting[group]
            waiting[group], size[group] = [], 0
    for group, batch in waiting.items():
        if batch:
            yield group, batch
