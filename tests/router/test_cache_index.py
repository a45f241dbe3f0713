"""Which node has which blocks, compared with sets; what a full index forgets."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlxfleet.router.cache_index import CacheIndex

NODES = st.sampled_from(["a", "b", "c"])
BLOCKS = st.lists(st.integers(1, 8), max_size=5, unique=True)


def test_each_node_is_matched_as_far_as_it_goes() -> None:
    index = CacheIndex(100)
    index.store("a", [1, 2, 3])
    index.store("b", [1])
    index.promise("b", [1, 2])
    index.store("c", [2, 3])
    assert index.matched_blocks([1, 2, 3, 4]) == {"a": 3, "b": 2}
    assert index.matched_blocks([]) == {}


def test_a_promise_counts_until_the_last_of_its_kind_is_taken_back() -> None:
    index = CacheIndex(100)
    index.promise("a", [1, 2])
    index.promise("a", [1])
    index.withdraw("a", [1, 2])
    assert index.matched_blocks([1, 2]) == {"a": 1}
    index.withdraw("a", [1])
    assert index.matched_blocks([1, 2]) == {}


def test_a_promise_of_before_a_node_was_removed_is_void() -> None:
    index = CacheIndex(100)
    index.promise("a", [1])
    index.remove("a")
    index.withdraw("a", [1])
    index.store("b", [1])
    assert index.matched_blocks([1]) == {"b": 1}


def test_a_full_index_forgets_ends_of_what_was_used_longest_ago() -> None:
    index = CacheIndex(6)
    index.store("a", [1, 2, 3])
    index.store("a", [4, 5, 6])
    index.use("a", [1, 2, 3])
    index.store("a", [7])
    assert index.blocks == 6
    assert index.dropped == 1
    assert index.matched_blocks([4, 5, 6]) == {"a": 2}
    assert index.matched_blocks([1, 2, 3]) == {"a": 3}


def test_the_node_with_the_most_makes_room() -> None:
    index = CacheIndex(4)
    index.store("small", [1])
    index.store("large", [2, 3, 4, 5, 6])
    assert (index.blocks_of("small"), index.blocks_of("large")) == (1, 3)


class Index(RuleBasedStateMachine):
    """Nodes that store, drop, promise and vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.index = CacheIndex(1000)
        self.stored: dict[str, set[int]] = {}
        self.promised: dict[str, list[list[int]]] = {}

    @rule(node=NODES, blocks=BLOCKS)
    def store(self, node: str, blocks: list[int]) -> None:
        self.index.store(node, blocks)
        self.stored.setdefault(node, set()).update(blocks)

    @rule(node=NODES, blocks=BLOCKS)
    def drop(self, node: str, blocks: list[int]) -> None:
        self.index.drop(node, blocks)
        self.stored.get(node, set()).difference_update(blocks)

    @rule(node=NODES, blocks=BLOCKS)
    def use(self, node: str, blocks: list[int]) -> None:
        self.index.use(node, blocks)

    @rule(node=NODES, blocks=BLOCKS)
    def promise(self, node: str, blocks: list[int]) -> None:
        self.index.promise(node, blocks)
        self.promised.setdefault(node, []).append(blocks)

    @rule(node=NODES)
    def withdraw(self, node: str) -> None:
        if self.promised.get(node):
            self.index.withdraw(node, self.promised[node].pop(0))

    @rule(node=NODES)
    def remove(self, node: str) -> None:
        self.index.remove(node)
        self.stored.pop(node, None)
        self.promised.pop(node, None)

    @rule(blocks=BLOCKS)
    def look_up(self, blocks: list[int]) -> None:
        expected = {}
        for node in "abc":
            having = self.stored.get(node, set()).union(*self.promised.get(node, []))
            count = next((i for i, block in enumerate(blocks) if block not in having), len(blocks))
            if count:
                expected[node] = count
        assert self.index.matched_blocks(blocks) == expected

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert self.index.blocks == sum(map(len, self.stored.values()))
        assert set(self.index._holders) == set().union(*self.stored.values())
        promised = [block for many in self.promised.values() for blocks in many for block in blocks]
        assert set(self.index._promised_to) == set(promised)
        for node, stored in self.stored.items():
            assert self.index.blocks_of(node) == len(stored)


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
