"""Which blocks of the cache are free, who uses the others, and which hold known beginnings.

A block holds the keys and values of a fixed number of consecutive tokens, in all layers. Block i
of a sequence holds its tokens i · size to (i + 1) · size. Sequences that begin with the same
tokens use the same blocks. A full block is known by its tokens and the block before it; when
nobody uses it, it stays until its memory is needed, the one unused for longest first. This file
counts; `bc2.generate.cache.kv_cache` holds the numbers. Imports no torch.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence

#: Stands for the block before a sequence's first.
ROOT = -1

#: Blocks between the used ones that are put up with; more than a sixteenth of them are too many.
MOST_HOLES = 32


class BlockPool:
    """Blocks 0 to `blocks` - 1.

    Of free blocks the lowest is taken first, so that those in use lie close together.

    Args:
        blocks: how many there are.
        size: tokens of a block.
        most_idle: known blocks without a user that are kept at most; None: all.
    """

    def __init__(self, blocks: int, size: int, most_idle: int | None = None):
        self.blocks = blocks
        self.size = size
        self._most_idle = blocks if most_idle is None else most_idle
        self._free = list(range(blocks))
        #: How many use a block, of those that are used.
        self._users: dict[int, int] = {}
        #: Known blocks without a user, the one to forget first at the beginning. A block comes
        #: after those that continue it, because a user of theirs is a user of it.
        self._idle: dict[int, None] = {}
        # What is known has a number that is never used again, while blocks move and change.
        self._numbers = itertools.count(ROOT + 1)
        self._number: dict[int, int] = {}
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    def users(self, block: int) -> int:
        """How many use a block."""
        return self._users.get(block, 0)

    def take(self, count: int) -> list[int]:
        """Blocks for one user; the caller has seen that enough are `available`."""
        taken = [heapq.heappop(self._free) if self._free else self._forget() for _ in range(count)]
        for block in taken:
            self._users[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Count one more user of these blocks."""
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] = self.users(block) + 1

    def give_back(self, blocks: Sequence[int]) -> list[int]:
        """Count one user less of a sequence's blocks, in the order of the sequence.

        Returns:
            The blocks that became free: nobody uses them, and what they hold is not known.
        """
        freed = []
        for block in reversed(blocks):
            assert block in self._users, f"block {block} was given back twice"
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._key:
                self._idle[block] = None
            else:
                freed.append(block)
        while len(self._idle) > self._most_idle:
            freed.append(self._forget())
        for block in freed:
            heapq.heappush(self._free, block)
        return freed

    def find(self, ids: Sequence[int], most: int) -> list[int]:
        """The known blocks that hold the beginning of `ids`, at most `most` tokens of it."""
        found: list[int] = []
        parent = ROOT
        for start in range(0, most - self.size + 1, self.size):
            block = self._known.get((parent, tuple(ids[start : start + self.size])))
            if block is None:
                break
            found.append(block)
            parent = self._number[block]
        return found

    def know(self, parent: int, ids: Sequence[int], block: int) -> bool:
        """Record that a block holds `ids` after the block `parent`, or after `ROOT`.

        Returns:
            Whether it is known from now on; False if another block is known for the same, or the
            parent has been forgotten.
        """
        before = ROOT if parent == ROOT else self._number.get(parent)
        if before is None:
            return False
        key = before, tuple(ids)
        if self._known.setdefault(key, block) != block:
            return False
        self._key[block] = key
        self._number[block] = next(self._numbers)
        return True

    def forget_all(self) -> list[int]:
        """Forget what blocks hold, so that nothing is found any more; the blocks that become free.

        Those in use stay with their users.
        """
        freed = list(self._idle)
        for held in (self._idle, self._known, self._key, self._number):
            held.clear()
        for block in freed:
            heapq.heappush(self._free, block)
        return freed

    def _forget(self) -> int:
        """The block that was without a user for longest, to be used for something else."""
        block = next(iter(self._idle))
        del self._idle[block], self._number[block]
        del self._known[self._key.pop(block)]
        return block

    def compact(self) -> dict[int, int]:
        """Give the used blocks the lowest places; idle ones there change places with them.

        Returns:
            Where blocks have moved: old place -> new place. The caller copies what they hold, and
            changes the lists of their users.
        """
        count = len(self._users)
        high = sorted(block for block in self._users if block >= count)
        moves: dict[int, int] = {}
        for block in high:
            # Free blocks below `count` are the lowest of all, so they come first.
            if self._free and self._free[0] < count:
                moves[block] = heapq.heappop(self._free)
        idle = sorted(block for block in self._idle if block < count)
        for old, new in zip(high[len(moves) :], idle, strict=True):
            moves |= {old: new, new: old}
        for block in high:
            if moves[block] not in moves:
                heapq.heappush(self._free, block)
        self._users = {moves.get(block, block): users for block, users in self._users.items()}
        if idle:
            self._idle = {moves.get(block, block): None for block in self._idle}
        keys = {block: self._key.pop(block) for block in moves if block in self._key}
        numbers = {block: self._number.pop(block) for block in keys}
        for old, key in keys.items():
            new = moves[old]
            self._known[key], self._key[new], self._number[new] = new, key, numbers[old]
        return moves

    @property
    def is_scattered(self) -> bool:
        """Whether many blocks lie between the used ones."""
        count = len(self._users)
        return count > 0 and max(self._users) + 1 - count > max(MOST_HOLES, count // 16)

    def check(self, used: Sequence[Sequence[int]]) -> None:
        """For tests: every block is free, idle, or used as often as `used` says."""
        count = Counter(block for blocks in used for block in blocks)
        assert count == self._users
        assert sorted([*self._free, *self._idle, *self._users]) == list(range(self.blocks))
        assert self._known == {key: block for block, key in self._key.items()}
        assert self._number.keys() == self._key.keys()
        numbers = {ROOT, *self._number.values()}
        assert all(before in numbers for before, _ in self._known)
