"""A batch as one of the ranks that share its tokens sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from bc2.data.loader import Batch
from bc2.parallel.mesh import Group
from bc2.parallel.sequence import own_tokens


@dataclass(frozen=True)
class OwnBatch(Batch):
    """Labels and token fields are those of this rank's tokens, [T own]; all else is whole.

    Tokens and boundaries are needed whole: the model cuts them itself.
    """

    sequence: Group = field(default_factory=Group)
    """The ranks that share the tokens; each has the slice `own_tokens`."""


def own_batch(batch: Batch, sequence: Group) -> Batch:
    """The batch as the objective of this rank is given it; itself where one rank has all tokens.

    Raises:
        ValueError: the tokens do not divide among the ranks.
    """
    if sequence.size == 1:
        return batch
    if batch.tokens.size % sequence.size:
        raise ValueError(
            f"{batch.tokens.size} tokens of a micro-batch do not divide among {sequence.size} ranks"
        )
    own = own_tokens(batch.tokens.size, sequence)
    whole = {each.name: getattr(batch, each.name) for each in fields(Batch)}
    cut = {
        "labels": batch.labels.reshape(-1)[own],
        "token_fields": {name: x.reshape(-1)[own] for name, x in batch.token_fields.items()},
    }
    return OwnBatch(**{**whole, **cut}, sequence=sequence)
