"""Logits in groups of tokens, so that only groups that matter are looked into.

Shapes:
    B  sequences      V  vocabulary      N  groups of the vocabulary      R  some of the sequences
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bc2.generate.sampling.noise import gumbel
from bc2.model.head_weight import spans

if TYPE_CHECKING:
    from bc2.generate.sampling_config import SamplingConfig

#: Tokens of a group.
GROUP = 64

#: Log-probabilities are sums of many terms; they are known to this, in nats, in fp32.
SUM_ERROR = 1e-5

#: Bytes of logits that are worked on at a time, by type of device: few enough for the cache of a
#: CPU's core, or many enough that starting kernels takes no time.
BLOCK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}


@dataclass(frozen=True)
class Draw:
    """What one sequence's next token is chosen by."""

    settings: SamplingConfig
    key: int = 0
    """From `sequence_key`."""
    place: int = 0
    """The number of the new token."""
    seen: Sequence[int] = ()
    """Distinct tokens of the sequence; needed for the repetition penalty."""
    where: str | None = None
    """Names the sequence in errors."""


def blocks(x: Tensor) -> list[slice]:
    """Slices of the rows of x [R, V], to be worked on one after another."""
    most = BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cpu"])
    return list(spans(len(x), max(1, most // (x.shape[1] * x.element_size()))))


def first_and_gap(x: Tensor) -> tuple[Tensor, Tensor]:
    """The place of the largest number of each row, and how far the next is below: [R], [R]."""
    if x.shape[1] == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device), x.new_full(
            (len(x),), math.inf
        )
    values, places = x.topk(2, dim=1)
    return places[:, 0], values[:, 0] - values[:, 1]


def reduced(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Each group reduced to a number: [R, V] -> [R, N]."""
    whole = x.shape[1] // GROUP * GROUP
    parts = [reduce(x[:, :whole].view(len(x), -1, GROUP), dim=-1)] if whole else []
    if whole < x.shape[1]:
        parts.append(reduce(x[:, whole:], dim=-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Groups:
    """Logits, their largest, and the largest of each group."""

    def __init__(self, x: Tensor):
        self.x = x
        self.count = -(-x.shape[1] // GROUP)
        self.tops = reduced(x, torch.amax)  # [B, N]
        self.top = self.tops.amax(dim=1)

    def members(self, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of some groups [R, n], and their ids: both [R, n · GROUP].

        Beyond the vocabulary, ids are those of its last token and logits are -inf.
        """
        ids = (groups[..., None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
        last = self.x.shape[1] - 1
        values = self.x[rows[:, None], ids.clamp(max=last)]
        return values.masked_fill(ids > last, -math.inf), ids.clamp(max=last)

    def largest(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest logits of rows, descending, and their ids: [R, count]."""
        if count * GROUP * 2 > self.x.shape[1]:
            found = self.x[rows].topk(count, dim=1)
            return found.values, found.indices
        # A number among the `count` largest lies in one of the groups with the largest maxima.
        values, ids = self.members(rows, self.tops[rows].topk(count, dim=1).indices)
        values, order = values.topk(count, dim=1)
        return values, ids.gather(1, order)


class Likelihoods(NamedTuple):
    """exp((logit - largest) / temperature) of rows."""

    sums: Tensor
    """Over each group: [R, N]."""
    likely: Tensor
    """Of all tokens [R, V]."""
    scaled: Tensor
    """Their logarithms [R, V]."""

    def some(self, at: Tensor) -> Likelihoods:
        """Of some of the rows."""
        if len(at) == len(self.sums):
            return self
        return Likelihoods(*(x[at] for x in self))


@dataclass
class Rows:
    """Some sequences that are chosen for by the same rule."""

    groups: Groups
    draws: Sequence[Draw]
    index: Tensor
    """int64 [R], their rows of the logits."""
    top: Tensor
    """The largest logits [R]."""
    margin: Tensor
    """How far the order of two logits cannot be trusted [R]; negative: they are exact."""
    temperature: Tensor = field(init=False)
    """[R], above 0."""

    def __post_init__(self) -> None:
        tiny = torch.finfo(self.top.dtype).tiny
        self.temperature = self.setting("temperature").clamp(min=tiny)

    def some(self, at: Tensor) -> Rows:
        """Some of them."""
        if len(at) == len(self.index):
            return self
        draws = [self.draws[i] for i in at.tolist()]
        return Rows(self.groups, draws, self.index[at], self.top[at], self.margin[at])

    def setting(self, name: str) -> Tensor:
        values = [getattr(draw.settings, name) for draw in self.draws]
        return torch.tensor(values, dtype=self.top.dtype, device=self.top.device)

    def top_k(self) -> Tensor:
        """Of each row, int64; 0 where all tokens are kept."""
        k = torch.tensor([draw.settings.top_k for draw in self.draws], device=self.top.device)
        return k.masked_fill(k >= self.groups.x.shape[1], 0)

    def scaled_margin(self) -> Tensor:
        """The tolerance after the temperature: fp64 [R]."""
        margin = (self.margin / self.temperature).double()
        return torch.where(self.margin < 0, margin, margin + SUM_ERROR)

    def noise(self, ids: Tensor, stream: int) -> Tensor:
        """Gumbel numbers: [R, M] for ids [R, M] or [M]."""
        keys = torch.tensor([draw.key for draw in self.draws], device=ids.device)
        places = torch.tensor([draw.place for draw in self.draws], device=ids.device)
        return gumbel(keys, places, ids, stream)

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits [R, M] relative to the largest, after the temperature."""
        return (logits - self.top[:, None]).div_(self.temperature[:, None])

    def group_sums(self) -> Tensor:
        """See `Likelihoods.sums`."""
        return self._likelihoods(keep=False).sums

    def likelihoods(self) -> Likelihoods:
        """Of all tokens."""
        return self._likelihoods(keep=True)

    def _likelihoods(self, keep: bool) -> Likelihoods:
        """If not `keep`, only the sums are what they should be."""
        x = self.groups.x
        parts = blocks(x[: len(self.index)])
        whole = torch.equal(self.index, torch.arange(len(x), device=x.device))
        shape = (len(self.index) if keep else parts[0].stop), x.shape[1]
        scaled, likely = (torch.empty(shape, dtype=x.dtype, device=x.device) for _ in range(2))
        sums = x.new_empty(len(self.index), self.groups.count)
        divide = bool((self.temperature != 1).any())
        for part in parts:
            into = part if keep else slice(0, part.stop - part.start)
            source = x[part] if whole else x[self.index[part]]
            y = torch.sub(source, self.top[part, None], out=scaled[into])
            if divide:
                y.div_(self.temperature[part, None])
            sums[part] = reduced(torch.exp(y, out=likely[into]), torch.sum)
        return Likelihoods(sums, likely, scaled)
