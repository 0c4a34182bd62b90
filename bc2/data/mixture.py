"""The order of samples: a pure function of (seed, global sample index).

Nothing of the order is stored, so a loader's whole state is one integer, however many
ranks read and however they are batched; and any index is found in constant time and memory.

Sources are chosen by blocks. Block b of B samples holds of each source what brings its
total over blocks 0..b to its share of (b + 1)B, rounded: in exact integers, so shares
never drift. Within a block the order is shuffled by (seed, block). The k-th draw of a
source with n windows is draw k mod n of epoch k // n, and a keyed permutation of n elements
says which window that is, so that each epoch visits each window exactly once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bc2.errors import RecipeError, nearest

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

#: Samples in a block, doubled until the rarest source has one in it on average.
MIN_BLOCK, MAX_BLOCK = 1 << 10, 1 << 16

#: Rounds of the Feistel network. Four make it pseudo-random (Luby and Rackoff 1988) for
#: strong rounds and wide halves; ours are narrow, and a round costs nanoseconds.
_ROUNDS = 8

#: Least width of a half in bits: below this, few permutations can be reached.
_MIN_HALF = 4


class Mixture:
    """Which window of which source is sample i.

    Args:
        windows: source -> windows in it.
        weights: source -> its share of samples, up to a common factor; in proportion to
            windows if None. Every source must be named, with 0 to leave it out.
        seed: another seed, another order.

    Attributes:
        sources: names in the order of source ids, sorted.
        block: samples in a block.

    Raises:
        RecipeError: an unknown or missing source, a negative weight, none above 0, weight on
            an empty source, or a weight too small for one sample in a block of 65,536.
    """

    def __init__(
        self,
        windows: Mapping[str, int],
        weights: Mapping[str, float | Fraction] | None,
        seed: int,
    ):
        self.windows = dict(windows)
        self.seed = seed
        self.sources = sorted(windows)
        # Exact shares as integers: bounds[j] / bounds[-1] of all samples are of sources < j.
        shares = _shares(self.windows, weights)
        self._bounds = [0]
        for source in self.sources:
            self._bounds.append(self._bounds[-1] + shares[source])
        self.block = _block_size(shares)
        self._windows = np.array([windows[source] for source in self.sources], dtype=np.int64)
        self._keys = np.array([_name_key(source, seed) for source in self.sources], np.uint64)
        self._schedule = lru_cache(maxsize=16)(self._make_schedule)

    def share(self, source: str) -> float:
        """The share of samples that comes from a source."""
        at = self.sources.index(source)
        return (self._bounds[at + 1] - self._bounds[at]) / self._bounds[-1]

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the windows of each source come in so many samples; 0 if it has none."""
        return {
            source: self.share(source) * samples / max(1, self.windows[source])
            for source in self.sources
        }

    def draws_before(self, block: int) -> Int64:
        """[sources] samples of each source in the blocks before `block`."""
        edges = [block * self.block * bound // self._bounds[-1] for bound in self._bounds]
        before = np.array(edges, dtype=np.int64)
        return before[1:] - before[:-1]

    def locate(self, indices: Int64) -> tuple[Int64, Int64, Int64]:
        """Where samples are.

        Args:
            indices: [n] global sample indices, from 0.

        Returns:
            source ids [n] (into `sources`), window ids [n], epochs [n].
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and indices.min() < 0:
            raise IndexError("sample indices begin at 0")
        sources = np.empty_like(indices)
        draws = np.empty_like(indices)
        blocks, within = np.divmod(indices, self.block)
        for block in np.unique(blocks):
            here = blocks == block
            order, rank = self._schedule(int(block))
            sources[here] = order[within[here]]
            draws[here] = rank[within[here]]
        counts = self._windows[sources]
        epochs, places = np.divmod(draws, counts)
        keys = mix(self._keys[sources] ^ mix(epochs.astype(np.uint64)))
        return sources, permute(places, counts, keys), epochs

    def _make_schedule(self, block: int) -> tuple[Int64, Int64]:
        """Of each sample in a block: its source, and how many of that source came before."""
        before = self.draws_before(block)
        counts = self.draws_before(block + 1) - before
        order = np.repeat(np.arange(len(counts)), counts)
        key = mix(mix(np.uint64(self.seed & _MASK)) ^ np.uint64(block))
        slots = np.arange(self.block, dtype=np.uint64)
        order = order[np.argsort(mix(slots ^ key), kind="stable")]
        rank = np.empty(self.block, dtype=np.int64)
        for source, first in enumerate(before):
            mine = np.flatnonzero(order == source)
            rank[mine] = first + np.arange(len(mine))
        return order, rank


def stratum_weights(
    windows: Mapping[str, int],
    asked: Mapping[str, float],
    carried: Mapping[str, int] | None,
    source_of: Callable[[str], str],
) -> dict[str, Fraction] | None:
    """The weight of each stratum, from what a recipe asks for and what a corpus carries.

    What is asked for wins. A source that has strata may be named for all of them: its weight is
    that of their sum, which they divide as the corpus would have it (in proportion to windows
    where it has no say). Strata without a window give their weight to the others of their
    source, and a source without any gives it to the other sources, unless it was asked for.

    Args:
        windows: stratum -> windows in it.
        asked: stratum or source -> weight; empty if the recipe leaves it to the corpus.
        carried: stratum -> weight; None of token shards without weights.
        source_of: the source that a stratum is of; itself for a source without strata.

    Returns:
        Weights as `Mixture` takes them; None for natural shares.

    Raises:
        RecipeError: an unknown name, or one named both by itself and with its source.
    """
    strata: dict[str, list[str]] = {}
    for name in windows:
        strata.setdefault(source_of(name), []).append(name)
    if not asked:
        if carried is None or not any(windows.values()):
            return None
        asked = {source: sum(carried[name] for name in strata[source]) for source in strata}
        asked = {s: w if any(windows[name] for name in strata[s]) else 0 for s, w in asked.items()}
    weights: dict[str, Fraction] = {}
    for name, weight in asked.items():
        if name not in windows and name not in strata:
            raise _unknown(name, [*strata, *windows])
        _check_weight(name, weight)
        mine = strata.get(name, [name])
        for stratum, share in _divided(mine, windows, carried).items():
            if stratum in weights:
                raise RecipeError(
                    f"{stratum!r} has a weight of its own and one with its source",
                    todo=f"name source {source_of(stratum)!r}, or each of its strata",
                )
            weights[stratum] = Fraction(weight) * share
    return weights


def _divided(
    strata: list[str], windows: Mapping[str, int], carried: Mapping[str, int] | None
) -> dict[str, Fraction]:
    """The parts of 1 that the strata of one source get."""
    sizes = {name: (carried[name] if carried else 0) if windows[name] else 0 for name in strata}
    if not any(sizes.values()):
        sizes = {name: windows[name] for name in strata}
    if not any(sizes.values()):  # `Mixture` says that there is too little of it
        sizes = dict.fromkeys(strata, 1)
    return {name: Fraction(size, sum(sizes.values())) for name, size in sizes.items()}


def _unknown(name: str, known: Iterable[str]) -> RecipeError:
    names = list(dict.fromkeys(known))
    guess = nearest(name, names)
    return RecipeError(
        f"a weight for a source that the tokens have not got: {name!r}",
        todo=f"did you mean {guess!r}?" if guess else f"they have {', '.join(names)}",
    )


def _check_weight(name: str, weight: float | Fraction) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise RecipeError(f"the weight of source {name!r} is {weight}", todo="give 0 or more")


def _shares(
    windows: Mapping[str, int], weights: Mapping[str, float | Fraction] | None
) -> dict[str, int]:
    """Integer shares in the exact proportion of the weights (a float is a fraction)."""
    if weights is None:
        if not any(windows.values()):
            raise RecipeError(
                "no source has as many tokens as one sample takes",
                todo="give more text, or lower sequence_length",
            )
        return dict(windows)
    for name, weight in weights.items():
        if name not in windows:
            raise _unknown(name, windows)
        _check_weight(name, weight)
        if weight > 0 and not windows[name]:
            raise RecipeError(
                f"source {name!r} has fewer tokens than one sample takes",
                todo="give it weight 0, or lower sequence_length",
            )
    missing = [name for name in windows if name not in weights]
    if missing:
        raise RecipeError(f"no weight for source {missing[0]!r}", todo="give one, or 0")
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    if not any(exact.values()):
        raise RecipeError("every source has weight 0", todo="give one source a weight above 0")
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    return {name: int(weight * scale) for name, weight in exact.items()}


def _block_size(shares: Mapping[str, int]) -> int:
    """The block in which the rarest source has a sample or more, on average."""
    total = sum(shares.values())
    rarest = min((name for name in shares if shares[name]), key=lambda name: shares[name])
    block = MIN_BLOCK
    while block * shares[rarest] < total and block < MAX_BLOCK:
        block *= 2
    if block * shares[rarest] < total:
        raise RecipeError(
            f"the share of source {rarest!r} is {shares[rarest] / total:.1e}, "
            f"less than one sample in {MAX_BLOCK:,}",
            todo="raise its weight, leave it out (weight 0), or join it with another source",
        )
    return block


# -- keyed permutations --------------------------------------------------------------------

_MASK = (1 << 64) - 1


def _name_key(source: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{source}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(value: UInt64 | np.uint64) -> UInt64:
    """A bijective hash of 64 bits: splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    x: UInt64 = np.atleast_1d(np.asarray(value, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    # In place: new memory for each step takes longer than the step.
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def permute(places: Int64, counts: Int64, keys: UInt64) -> Int64:
    """Where pseudo-random permutations send places: one permutation for each (count, key).

    A Feistel network permutes a power of four that holds `counts`; a result outside is
    permuted again until it is inside (cycle walking), four times or so for large counts.

    Args:
        places: [n], each in [0, count).
        counts: [n] sizes of the permuted sets.
        keys: [n].

    Returns:
        [n], each in [0, count).
    """
    half = np.array([_half_bits(int(count)) for count in counts.tolist()], dtype=np.uint64)
    result = places.astype(np.uint64)
    limit = counts.astype(np.uint64)
    todo = np.arange(len(result))
    while todo.size:
        result[todo] = _feistel(result[todo], half[todo], keys[todo])
        todo = todo[result[todo] >= limit[todo]]
    return result.astype(np.int64)


def _half_bits(count: int) -> int:
    return max(_MIN_HALF, ((count - 1).bit_length() + 1) // 2)


def _feistel(value: UInt64, half: UInt64, key: UInt64) -> UInt64:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        drawn = mix(key ^ mix(right + np.uint64(number << 40)))
        left, right = right, left ^ (drawn & mask)
    return (left << half) | right
