"""Which prefixes are stored, who computes them, and what makes room for others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxfleet.common.block_hashes import NO_BLOCKS, block_hash, block_hashes
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import KvSnapshot
from mlxfleet.workers import prefix_tree
from mlxfleet.workers.kv_events import KvJournal
from mlxfleet.workers.prefix_tree import LEAST_REUSED_TOKENS, Lease, PrefixTree, Write

Ids = list[int]


def ids(blocks: float, *, first: int = 0) -> Ids:
    """So many blocks of tokens that begin with a number of their own."""
    return [first, *range(1000, 999 + int(blocks * BLOCK_TOKENS))]


def begin(tree: PrefixTree, token_ids: Ids, rid: str = "a") -> Lease:
    """A sequence starts with what is stored."""
    return tree.begin(rid, tree.match(token_ids), token_ids)


def keep(tree: PrefixTree, token_ids: Ids) -> Write | None:
    """A sequence comes and goes; what is to be stored."""
    return tree.end(begin(tree, token_ids), token_ids)


def cached(tree: PrefixTree, token_ids: Ids) -> int:
    """How many of these tokens are stored."""
    return tree.match(token_ids).tokens


# --- look-up --------------------------------------------------------------------------------------


def test_an_empty_tree_knows_nothing() -> None:
    match = PrefixTree(4).match(ids(2))
    assert (match.path, match.partial, match.tokens, match.pending) == ([], None, 0, None)


def test_what_a_sequence_leaves_is_written_block_by_block() -> None:
    write = keep(PrefixTree(4), ids(2.5))
    assert write is not None
    assert write.start == 0
    assert len(set(write.blocks)) == 3


def test_the_blocks_of_a_prefix_come_in_order() -> None:
    tree = PrefixTree(4)
    write = keep(tree, ids(3))
    assert write is not None
    lease = begin(tree, ids(3))
    assert (lease.cached_tokens, lease.cached_blocks) == (3 * BLOCK_TOKENS, write.blocks)


@pytest.mark.parametrize("blocks", [1.5, 2, 2.5])
def test_part_of_a_block_is_found(blocks: float) -> None:
    tree = PrefixTree(4)
    write = keep(tree, ids(2.5))
    assert write is not None
    lease = begin(tree, ids(blocks))
    assert lease.cached_tokens == blocks * BLOCK_TOKENS
    assert lease.cached_blocks == write.blocks[: len(lease.cached_blocks)]


def test_a_block_is_found_as_far_as_it_is_the_same() -> None:
    tree = PrefixTree(8)
    keep(tree, ids(2))
    other = [*ids(1.5), 7, 7, 7]
    assert cached(tree, other) == 1.5 * BLOCK_TOKENS


def test_the_child_with_the_most_in_common_is_found() -> None:
    tree = PrefixTree(8)
    for same in (5, 20, 12):
        keep(tree, [*range(same), *[500 + same] * (BLOCK_TOKENS - same)])
    assert cached(tree, [*range(18), 900]) == 18
    assert cached(tree, [*range(11), 900]) == 11


def test_other_tokens_before_a_block_make_it_another() -> None:
    tree = PrefixTree(8)
    keep(tree, ids(2))
    assert cached(tree, ids(2, first=1)) == 0


def test_a_few_tokens_are_not_worth_a_copy() -> None:
    tree = PrefixTree(4)
    keep(tree, ids(1))
    few = begin(tree, [*ids(1)[: LEAST_REUSED_TOKENS - 1], 7])
    assert (few.cached_tokens, few.cached_blocks) == (0, [])
    enough = begin(tree, [*ids(1)[:LEAST_REUSED_TOKENS], 7])
    assert (enough.cached_tokens, len(enough.cached_blocks)) == (LEAST_REUSED_TOKENS, 1)


def test_without_blocks_nothing_is_stored() -> None:
    tree = PrefixTree(0)
    lease = begin(tree, ids(2))
    lease.computed = 2 * BLOCK_TOKENS
    assert lease.pending == []
    assert tree.store_computed(lease) is None
    assert tree.end(lease, ids(2)) is None
    assert cached(tree, ids(2)) == 0


# --- leaving --------------------------------------------------------------------------------------


def test_only_what_is_new_is_written() -> None:
    tree = PrefixTree(8)
    keep(tree, ids(2))
    assert keep(tree, ids(2)) is None
    write = keep(tree, ids(4))
    assert write is not None
    assert (write.start, len(write.blocks)) == (2 * BLOCK_TOKENS, 2)


def test_what_was_not_computed_is_given_back() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(4))
    assert tree.used == 4
    write = tree.end(lease, ids(1))
    assert write is not None
    assert (len(write.blocks), tree.used) == (1, 1)
    assert cached(tree, ids(4)) == BLOCK_TOKENS


def test_generated_tokens_are_stored_too() -> None:
    tree = PrefixTree(8)
    write = tree.end(begin(tree, ids(1.5)), ids(3.5))
    assert write is not None
    assert len(write.blocks) == 4
    assert cached(tree, ids(4)) == 3.5 * BLOCK_TOKENS


def test_a_longer_block_takes_the_place_of_its_own_shorter_one() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(1.5))
    lease.computed = len(ids(1.5))
    assert tree.store_computed(lease) is not None
    assert tree.used == 2
    write = tree.end(lease, ids(1.75))
    assert write is not None
    assert (write.start, len(write.blocks), tree.used) == (BLOCK_TOKENS, 1, 2)
    assert cached(tree, ids(2)) == 1.75 * BLOCK_TOKENS


def test_who_computed_the_same_beside_another_writes_it_once() -> None:
    tree = PrefixTree(8)
    empty = tree.match(ids(2))
    first, second = (tree.begin(rid, empty, ids(2)) for rid in "ab")
    assert tree.end(first, ids(2)) is not None
    assert tree.end(second, ids(2)) is None
    assert tree.used == 2


# --- pending --------------------------------------------------------------------------------------


def test_what_somebody_computes_is_pending_and_not_found() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(2))
    match = tree.match(ids(2))
    assert match.tokens == 0
    assert match.pending is lease.pending[0]
    assert match.pending.owner is lease


def test_what_is_computed_by_now_can_be_stored() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(3))
    lease.computed = 2 * BLOCK_TOKENS + 1
    write = tree.store_computed(lease)
    assert write is not None
    assert (write.start, len(write.blocks)) == (0, 2)
    match = tree.match(ids(3))
    assert match.tokens == 2 * BLOCK_TOKENS
    assert match.pending is lease.pending[0]


def test_nothing_is_stored_twice() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(3))
    lease.computed = 2 * BLOCK_TOKENS
    tree.store_computed(lease)
    assert tree.store_computed(lease) is None
    lease.computed = 3 * BLOCK_TOKENS
    write = tree.store_computed(lease)
    assert write is not None
    assert (write.start, len(write.blocks)) == (2 * BLOCK_TOKENS, 1)
    assert tree.end(lease, ids(3)) is None


def test_when_the_owner_gives_up_nothing_is_pending_any_more() -> None:
    tree = PrefixTree(8)
    lease = begin(tree, ids(2))
    node = tree.match(ids(2)).pending
    assert node is not None
    assert node.pending
    tree.end(lease, [])
    assert not node.pending
    assert tree.match(ids(2)).pending is None
    assert tree.used == 0


def test_a_few_tokens_in_common_are_not_worth_waiting_for() -> None:
    tree = PrefixTree(8)
    begin(tree, ids(1))
    assert tree.match([*ids(1)[: LEAST_REUSED_TOKENS - 1], 7]).pending is None
    assert tree.match([*ids(1)[:LEAST_REUSED_TOKENS], 7]).pending is not None


# --- eviction -------------------------------------------------------------------------------------


def test_the_leaf_that_was_used_longest_ago_makes_room() -> None:
    tree = PrefixTree(3)
    for first in (1, 2, 3):
        keep(tree, ids(1, first=first))
    keep(tree, ids(1, first=1))
    keep(tree, ids(1, first=4))
    assert [cached(tree, ids(1, first=first)) > 0 for first in (1, 2, 3, 4)] == [
        True,
        False,
        True,
        True,
    ]


def test_a_look_up_alone_is_no_use() -> None:
    tree = PrefixTree(2)
    keep(tree, ids(1, first=1))
    keep(tree, ids(1, first=2))
    tree.match(ids(1, first=1))
    keep(tree, ids(1, first=3))
    assert cached(tree, ids(1, first=1)) == 0


def test_a_prefix_is_evicted_from_its_end() -> None:
    tree = PrefixTree(3)
    keep(tree, ids(3))
    keep(tree, ids(1, first=1))
    assert cached(tree, ids(3)) == 2 * BLOCK_TOKENS


def test_what_a_running_sequence_extends_is_not_evicted() -> None:
    tree = PrefixTree(3)
    keep(tree, ids(2))
    lease = begin(tree, ids(2))
    keep(tree, ids(3, first=1))
    assert cached(tree, ids(2)) == 2 * BLOCK_TOKENS
    tree.end(lease, ids(2))
    keep(tree, ids(3, first=1))
    assert cached(tree, ids(3, first=1)) == 3 * BLOCK_TOKENS
    assert cached(tree, ids(2)) == 0


def test_what_is_pending_is_not_evicted() -> None:
    tree = PrefixTree(2)
    lease = begin(tree, ids(2))
    assert keep(tree, ids(1, first=1)) is None
    write = tree.end(lease, ids(2))
    assert write is not None
    assert len(write.blocks) == 2


def test_a_prefix_that_does_not_fit_is_stored_as_far_as_it_does() -> None:
    tree = PrefixTree(2)
    write = keep(tree, ids(5))
    assert write is not None
    assert (write.start, len(write.blocks)) == (0, 2)
    assert cached(tree, ids(5)) == 2 * BLOCK_TOKENS


def test_many_uses_do_not_make_the_list_of_leaves_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_tree, "STALE_ENTRIES", 10)
    tree = PrefixTree(4)
    for number in range(200):
        keep(tree, ids(1, first=number % 3))
    assert len(tree._leaves) <= 2 * 4 + 10
    keep(tree, ids(4, first=9))
    assert cached(tree, ids(4, first=9)) == 4 * BLOCK_TOKENS


# --- what the router is told ----------------------------------------------------------------------


def told(tree: PrefixTree, journal: KvJournal) -> tuple[list[int], list[int]]:
    """Blocks that came and went since last asked."""
    messages = list(journal.take(tree.stored_hashes))
    stored = [block for message in messages for block in message.stored]
    return stored, [block for m in messages if not isinstance(m, KvSnapshot) for block in m.removed]


def test_whole_blocks_are_told_when_they_are_stored_not_before() -> None:
    journal = KvJournal()
    tree = PrefixTree(8, journal)
    told(tree, journal)
    lease = begin(tree, ids(2.5))
    assert told(tree, journal) == ([], [])
    lease.computed = BLOCK_TOKENS
    tree.store_computed(lease)
    hashes = block_hashes(ids(2.5))
    assert told(tree, journal) == (hashes[:1], [])
    tree.end(lease, ids(2.5))
    assert told(tree, journal) == (hashes[1:], [])


def test_what_makes_room_is_told() -> None:
    journal = KvJournal()
    tree = PrefixTree(2, journal)
    keep(tree, ids(2))
    told(tree, journal)
    keep(tree, ids(1, first=1))
    assert told(tree, journal) == (block_hashes(ids(1, first=1)), block_hashes(ids(2))[1:])


def test_a_cleared_tree_says_so() -> None:
    journal = KvJournal()
    tree = PrefixTree(2, journal)
    keep(tree, ids(1))
    told(tree, journal)
    tree.clear()
    (message,) = journal.take(tree.stored_hashes)
    assert not isinstance(message, KvSnapshot)
    assert message.cleared


def test_the_age_is_that_of_what_makes_room_next() -> None:
    now = 0.0
    tree = PrefixTree(4, now=lambda: now)
    assert tree.age_s == 0
    keep(tree, ids(1, first=1))
    now = 5.0
    lease = begin(tree, ids(1, first=2))
    assert tree.age_s == 5
    tree.end(lease, ids(1, first=2))
    keep(tree, ids(1, first=1))
    now = 6.0
    assert tree.age_s == 1


def test_blocks_to_come_are_expected() -> None:
    tree = PrefixTree(8)
    begin(tree, ids(2.5))
    assert tree.expected(ids(2)) == 2 * BLOCK_TOKENS
    assert tree.expected(ids(4)) == 2 * BLOCK_TOKENS
    assert tree.expected(ids(2, first=1)) == 0


# --- against a model ------------------------------------------------------------------------------

BLOCK = 4
ALPHABET = st.integers(0, 1)


class Tree(RuleBasedStateMachine):
    """Sequences that come, compute and go. `written` has the prefix up to and including each
    block, as it was last written."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(prefix_tree, "BLOCK_TOKENS", BLOCK)
        self.patches.setattr(prefix_tree, "LEAST_REUSED_TOKENS", 2)
        self.patches.setattr(prefix_tree, "STALE_ENTRIES", 5)
        self.running: list[tuple[Lease, Ids]] = []
        self.written: dict[int, Ids] = {}
        self.known: list[Ids] = [[]]
        self.stored_tokens = 0

    @initialize(blocks=st.integers(0, 12))
    def create(self, blocks: int) -> None:
        self.blocks = blocks
        self.journal = KvJournal()
        self.tree = PrefixTree(blocks, self.journal)
        self.told: set[int] = set()

    def indices(self) -> st.SearchStrategy[int]:
        """Which sequence something happens to."""
        return st.integers(0, len(self.running) - 1)

    # --- what can happen

    @rule(data=st.data(), more=st.lists(ALPHABET, max_size=14))
    def begin(self, data: st.DataObject, more: Ids) -> None:
        before = data.draw(st.sampled_from(self.known))
        token_ids = before[: data.draw(st.integers(0, len(before)))] + more
        self.known.append(token_ids)
        match = self.tree.match(token_ids)
        self.check_match(token_ids, len(match.path) * BLOCK, [node.block for node in match.path])
        lease = self.tree.begin("a", match, token_ids)
        self.check_match(token_ids, lease.cached_tokens, lease.cached_blocks)
        if match.tokens >= 2:
            assert lease.cached_tokens == match.tokens
        self.running.append((lease, token_ids))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        lease, token_ids = self.running[data.draw(self.indices())]
        lease.computed = data.draw(st.integers(lease.computed, len(token_ids)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def store_computed(self, data: st.DataObject) -> None:
        lease, token_ids = self.running[data.draw(self.indices())]
        self.replay(lease, self.tree.store_computed(lease), token_ids[: lease.computed])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), generated=st.lists(ALPHABET, max_size=10))
    def end(self, data: st.DataObject, generated: Ids) -> None:
        lease, token_ids = self.running.pop(data.draw(self.indices()))
        computed = token_ids[: lease.computed]
        if lease.computed == len(token_ids):
            computed += generated
            self.known.append(computed)
        self.replay(lease, self.tree.end(lease, computed), computed)

    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        token_ids = data.draw(st.sampled_from(self.known))
        match = self.tree.match(token_ids)
        blocks = [node.block for node in match.path]
        if match.partial is not None:
            blocks.append(match.partial.block)
        self.check_match(token_ids, match.tokens, blocks)
        assert match.pending is None or match.pending.owner in [lease for lease, _ in self.running]

    @rule(ask=st.booleans())
    def tell(self, ask: bool) -> None:
        if ask:
            self.journal.ask_snapshot()
        for message in self.journal.take(self.tree.stored_hashes):
            if isinstance(message, KvSnapshot):
                self.told = (set() if message.first else self.told) | set(message.stored)
                continue
            if message.cleared:
                self.told.clear()
            self.told -= set(message.removed)
            self.told |= set(message.stored)
        whole = [node for node in nodes(self.tree) if len(node.tokens) == BLOCK]
        assert self.told == {chained(node) for node in whole if node.owner is None}

    # --- what must hold

    def replay(self, lease: Lease, write: Write | None, computed: Ids) -> None:
        if write is None:
            return
        assert write.start % BLOCK == 0
        assert len(set(write.blocks)) == len(write.blocks) > 0
        others = [other for other, _ in self.running if other is not lease]
        in_use = {node.block for other in others for node in held(other)}
        assert not in_use & set(write.blocks)
        for index, block in enumerate(write.blocks):
            start = write.start + index * BLOCK
            assert 0 <= block < self.blocks
            assert start < len(computed)
            self.written[block] = computed[: start + BLOCK]

    def check_match(self, token_ids: Ids, tokens: int, blocks: Ids) -> None:
        assert len(blocks) == -(-tokens // BLOCK)
        assert len(set(blocks)) == len(blocks)
        for index, block in enumerate(blocks):
            end = min(tokens, (index + 1) * BLOCK)
            stored = self.written[block]
            assert (len(stored) - 1) // BLOCK == index
            assert stored[:end] == token_ids[:end]

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        blocks = [node.block for node in nodes(self.tree)]
        assert len(set(blocks)) == len(blocks) == self.tree.used <= self.blocks

    @invariant()
    def what_is_held_is_in_the_tree(self) -> None:
        there = set(map(id, nodes(self.tree)))
        for lease, _ in self.running:
            assert all(id(node) in there for node in held(lease))

    @invariant()
    def what_is_stored_is_what_was_written(self) -> None:
        for node in nodes(self.tree):
            if node.owner is None:
                written = self.written[node.block]
                depth = len(list(lineage(node))) - 1
                assert written[depth * BLOCK :] == list(node.tokens)

    def teardown(self) -> None:
        """In the end everything can make room."""
        try:
            while self.running:
                lease, token_ids = self.running.pop()
                computed = token_ids[: lease.computed]
                self.replay(lease, self.tree.end(lease, computed), computed)
            for number in range(self.blocks):
                assert keep(self.tree, [100 + number] * BLOCK) is not None
            assert sorted(node.tokens[0] for node in nodes(self.tree)) == [
                100 + number for number in range(self.blocks)
            ]
        finally:
            self.patches.undo()


def nodes(tree: PrefixTree) -> list[prefix_tree.Node]:
    """Every node but the root."""
    found = list(tree.root.children.values())
    for node in found:
        found += node.children.values()
    return found


def lineage(node: prefix_tree.Node) -> Iterable[prefix_tree.Node]:
    """A node and those above it, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def chained(node: prefix_tree.Node) -> int:
    """A node's hash, from the tokens of its whole path."""
    path = [above.tokens for above in lineage(node)]
    return reduce(block_hash, reversed(path), NO_BLOCKS)


def held(lease: Lease) -> list[prefix_tree.Node]:
    """Nodes that must stay while a sequence runs."""
    return [*lineage(lease.tail), *lease.pending]


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
