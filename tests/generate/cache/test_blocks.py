"""The counting of blocks, against a model that keeps lists and looks through them."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from bc2.generate.cache.blocks import ROOT, BlockPool

BLOCKS, SIZE = 9, 2

#: Of two tokens, so that many sequences begin alike.
TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class Sequence:
    """Tokens, the blocks that hold them, and how many of these were offered to others."""

    def __init__(self, ids, blocks, known):
        self.ids, self.blocks, self.known = ids, blocks, known


class Pool(RuleBasedStateMachine):
    """Sequences come, fork, grow and go, as in a session."""

    sequences = Bundle("sequences")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.live = []
        #: Known blocks: all tokens up to the end of the block -> the block.
        self.known = {}
        #: Blocks without a user, the one that lost its last user first at the beginning.
        self.unused = list(range(BLOCKS))

    def users(self, block):
        return sum(sequence.blocks.count(block) for sequence in self.live)

    def take(self, count):
        """Take blocks, which are free ones in order, and then known ones, the oldest first."""
        expected = []
        for _ in range(count):
            held = set(self.known.values())
            free = [block for block in self.unused if block not in held]
            block = min(free) if free else self.unused[0]
            self.unused.remove(block)
            self.known = {ids: other for ids, other in self.known.items() if other != block}
            expected.append(block)
        assert self.pool.take(count) == expected
        return expected

    def share(self, blocks):
        self.pool.share(blocks)
        self.unused = [block for block in self.unused if block not in blocks]

    def give_back(self, blocks):
        freed = self.pool.give_back(blocks)
        gone = [block for block in reversed(blocks) if not self.users(block)]
        self.unused += gone
        assert freed == [block for block in gone if block not in self.known.values()]

    def know(self, sequence):
        """Offer the full blocks of a sequence to others, up to the first that is there already."""
        while 0 <= sequence.known < len(sequence.ids) // SIZE:
            at = sequence.known
            prefix = tuple(sequence.ids[: (at + 1) * SIZE])
            begun = at == 0 or self.known.get(prefix[:-SIZE]) == sequence.blocks[at - 1]
            new = (
                begun and self.known.setdefault(prefix, sequence.blocks[at]) == sequence.blocks[at]
            )
            parent = sequence.blocks[at - 1] if at else ROOT
            assert self.pool.know(parent, prefix[-SIZE:], sequence.blocks[at]) == new
            sequence.known = at + 1 if new else -1

    @rule(target=sequences, ids=TEXTS)
    def begin(self, ids):
        found = self.pool.find(ids, len(ids) - 1)
        expected = []
        while (len(expected) + 1) * SIZE <= len(ids) - 1:
            block = self.known.get(tuple(ids[: (len(expected) + 1) * SIZE]))
            if block is None:
                break
            expected.append(block)
        assert found == expected
        needed = -(-len(ids) // SIZE) - len(found)
        if needed > len(set(self.unused) - set(found)):
            return multiple()
        self.share(found)
        sequence = Sequence(list(ids), [*found, *self.take(needed)], len(found))
        self.live.append(sequence)
        self.know(sequence)
        return sequence

    @rule(target=sequences, one=sequences)
    def fork(self, one):
        other = Sequence(list(one.ids), list(one.blocks), one.known)
        self.share(other.blocks)
        self.live.append(other)
        return other

    @rule(one=sequences, token=st.integers(0, 1))
    def grow(self, one, token):
        full = len(one.ids) == len(one.blocks) * SIZE
        if full or self.users(one.blocks[-1]) > 1:
            if not self.pool.available:
                return
            (block,) = self.take(1)
            if not full:
                shared = one.blocks.pop()
                self.give_back([shared])
            one.blocks.append(block)
        one.ids.append(token)
        self.know(one)

    @rule(one=consumes(sequences))
    def end(self, one):
        self.live.remove(one)
        self.give_back(one.blocks)

    @rule()
    @precondition(lambda self: self.known)
    def forget_all(self):
        idle = {block for block in self.known.values() if block in self.unused}
        assert set(self.pool.forget_all()) == idle
        self.known = {}

    @rule()
    def compact(self):
        moves = self.pool.compact()
        # Idle blocks keep their order; among the free ones there is none.
        idle = [moves.get(b, b) for b in self.unused if b in set(self.known.values())]
        for sequence in self.live:
            sequence.blocks = [moves.get(block, block) for block in sequence.blocks]
        self.known = {ids: moves.get(block, block) for ids, block in self.known.items()}
        used = {block for sequence in self.live for block in sequence.blocks}
        assert used == set(range(len(used)))
        assert not self.pool.is_scattered
        self.unused = idle + [b for b in range(BLOCKS) if b not in used and b not in idle]

    @invariant()
    def every_block_is_counted(self):
        self.pool.check([sequence.blocks for sequence in self.live])
        assert self.pool.available == len(self.unused)
        assert [self.pool.users(block) for block in range(BLOCKS)] == [
            self.users(block) for block in range(BLOCKS)
        ]

    @invariant()
    def what_is_found_is_held(self):
        """A prefix that is known is found whole, however long."""
        for prefix, block in self.known.items():
            assert self.pool.find(prefix, len(prefix))[-1] == block


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class TestPoolSoak(Pool.TestCase):
    pytestmark = pytest.mark.slow
    settings = settings(max_examples=3000, stateful_step_count=80, deadline=None)


def test_the_beginning_is_found_up_to_a_limit():
    pool = BlockPool(4, 3)
    blocks = pool.take(2)
    assert pool.know(ROOT, [1, 2, 3], blocks[0])
    assert pool.know(blocks[0], [4, 5, 6], blocks[1])
    text = [1, 2, 3, 4, 5, 6, 7]
    assert [len(pool.find(text, most)) for most in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert pool.find([1, 2, 4], 3) == []
    assert pool.find([0, 2, 3, 4, 5, 6], 6) == []


def test_the_block_unused_for_longest_is_forgotten_first():
    pool = BlockPool(3, 1)
    for token in range(3):
        (block,) = pool.take(1)
        assert pool.know(ROOT, [token], block)
    pool.give_back([1])
    pool.give_back([0])
    pool.give_back([2])
    assert pool.take(1) == [1]
    assert [pool.find([token], 1) for token in range(3)] == [[0], [], [2]]


def test_a_block_cannot_be_given_back_twice():
    pool = BlockPool(2, 1)
    blocks = pool.take(1)
    pool.give_back(blocks)
    with pytest.raises(AssertionError, match="twice"):
        pool.give_back(blocks)


def test_what_continues_a_forgotten_block_is_not_known():
    """Else a later sequence in the parent's place would find keys of another text."""
    pool = BlockPool(2, 1)
    parent, block = pool.take(2)
    assert pool.know(ROOT, [5], parent)
    pool.forget_all()
    assert not pool.know(parent, [6], block)
    pool.give_back([parent, block])
    (parent,) = pool.take(1)
    assert pool.know(ROOT, [7], parent)
    assert pool.find([7, 6], 2) == [parent]


def test_used_blocks_change_places_with_idle_ones():
    pool = BlockPool(40, 1)
    blocks = pool.take(40)
    for block in blocks:
        assert pool.know(ROOT, [block], block)
    pool.give_back(blocks[:36])
    assert pool.is_scattered
    moves = pool.compact()
    assert moves == {36: 0, 0: 36, 37: 1, 1: 37, 38: 2, 2: 38, 39: 3, 3: 39}
    assert [pool.find([token], 1) for token in (36, 0, 20)] == [[0], [36], [20]]
    pool.check([[0, 1, 2, 3]])
    assert not pool.is_scattered


def test_few_idle_blocks_are_kept():
    pool = BlockPool(8, 1, most_idle=2)
    blocks = pool.take(5)
    for block in blocks:
        assert pool.know(ROOT, [block], block)
    assert pool.give_back(blocks) == [4, 3, 2]
    assert [pool.find([token], 1) for token in range(5)] == [[0], [1], [], [], []]
    pool.check([])
