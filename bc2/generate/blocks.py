"""Which blocks of the cache are free, who uses the others, and which hold known beginnings.

A block holds the keys and values of a fixed number of consecutive tokens, in all layers. Block i
of a sequence holds its tokens i · size to (i + 1) · size. Sequences that begin with the same
tokens use the same blocks. A full block is known by its tokens and the block before it; when
nobody uses it, it stays until its memory is needed, the one unused for longest first. This file
counts; `bc2.generate.kv_cache` holds the numbers. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

#: Stands for the block before a sequence's first.
ROOT = -1


class BlockPool:
    """Blocks 0 to `blocks` - 1.

    Of free blocks the lowest is taken first, so that those in use lie close together.

    Args:
        blocks: how many there are.
        size: tokens of a block.
    """

    def __init__(self, blocks: int, size: int):
        self.blocks = blocks
        self.size = size
        self._free = list(range(blocks))
        self._users = [0] * blocks
        #: Known blocks without a user, the one to forget first at the beginning. A block comes
        #: after those that continue it, because a user of theirs is a user of it.
        self._idle: dict[int, None] = {}
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    def users(self, block: int) -> int:
        """How many use a block."""
        return self._users[block]

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
            self._users[block] += 1

    def give_back(self, blocks: Sequence[int]) -> list[int]:
        """Count one user less of a sequence's blocks, in the order of the sequence.

        Returns:
            The blocks that became free: nobody uses them, and what they hold is not known.
        """
        freed = []
        for block in reversed(blocks):
            self._users[block] -= 1
            assert self._users[block] >= 0, f"block {block} was given back twice"
            if self._users[block]:
                continue
            if block in self._key:
                self._idle[block] = None
            else:
                heapq.heappush(self._free, block)
                freed.append(block)
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
            parent = block
        return found

    def know(self, parent: int, ids: Sequence[int], block: int) -> bool:
        """Record that a block holds `ids` after the known block `parent`, or after `ROOT`.

        Returns:
            Whether it is known from now on; False if another block is known for the same.
        """
        key = parent, tuple(ids)
        if self._known.setdefault(key, block) != block:
            return False
        self._key[block] = key
        return True

    def forget_all(self) -> list[int]:
        """Forget what blocks hold, so that nothing is found any more; the blocks that become free.

        Those in use stay with their users.
        """
        freed = list(self._idle)
        self._idle.clear()
        self._known.clear()
        self._key.clear()
        for block in freed:
            heapq.heappush(self._free, block)
        return freed

    def _forget(self) -> int:
        """The block that was without a user for longest, to be used for something else."""
        block = next(iter(self._idle))
        del self._idle[block]
        del self._known[self._key.pop(block)]
        return block

    def check(self, used: Sequence[Sequence[int]]) -> None:
        """For tests: every block is free, idle, or used as often as `used` says."""
        count = [0] * self.blocks
        for blocks in used:
            for block in blocks:
                count[block] += 1
        assert count == self._users
        assert sorted([*self._free, *self._idle]) == [b for b, n in enumerate(count) if n == 0]
        assert self._known == {key: block for block, key in self._key.items()}
        assert all(key[0] == ROOT or key[0] in self._key for key in self._known)
