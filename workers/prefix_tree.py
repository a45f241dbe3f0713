"""Which prefixes are in the worker's cold store: a radix tree of token blocks.

A node is a block of the store and the tokens in it, its path from the root the prefix before it.
Only leaves may hold fewer than BLOCK_TOKENS tokens. A node is pending while a running sequence has
yet to compute or to store it; who needs the same prefix waits for it instead of computing it again.
Look-up and insertion take time linear in the number of tokens.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mlxfleet.common.block_hashes import NO_BLOCKS, block_hash
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.workers.kv_events import KvJournal

# Fewer are computed faster than copied.
LEAST_REUSED_TOKENS = 8
STALE_ENTRIES = 1000

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """`refs` counts the sequences that extend it; `owner` computes it while it is pending. `hash`
    is the chained hash of a whole block, once it is stored; `used_s` when it was last used."""

    tokens: Tokens
    parent: Node | None
    block: int
    owner: Lease | None = None
    removed: bool = False
    refs: int = 0
    last_used: int = 0
    used_s: float = 0.0
    hash: int = NO_BLOCKS
    children: dict[Tokens, Node] = field(default_factory=dict)
    sorted_children: list[Tokens] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """Whether somebody has yet to store it."""
        return self.owner is not None and not self.removed

    def closest(self, tokens: Tokens) -> tuple[Node | None, int]:
        """The child that begins most like `tokens`, and how many tokens they have in common. In
        sorted order that is a neighbour of where they would be."""
        at = bisect_left(self.sorted_children, tokens)
        best, most = None, 0
        for key in self.sorted_children[max(at - 1, 0) : at + 1]:
            if (same := common_length(key, tokens)) > most:
                best, most = self.children[key], same
        return best, most


@dataclass(eq=False)
class Lease:
    """A running sequence's hold on the tree: `tail` is the deepest whole block of its prefix that
    is stored, at `tail_tokens` tokens; `pending` the blocks after it that it will store, in order.
    `computed` tokens are in the worker."""

    rid: str
    tail: Node
    tail_tokens: int
    cached_tokens: int
    cached_blocks: list[int]
    computed: int
    pending: list[Node] = field(default_factory=list)
    partial: Node | None = None


@dataclass(frozen=True)
class Hold:
    """Keeps the first `tokens` tokens of a prompt from being evicted, which end with `node`."""

    node: Node
    tokens: int


@dataclass(frozen=True)
class Write:
    """Blocks that get a sequence's tokens from position `start` on."""

    start: int
    blocks: list[int]


@dataclass(frozen=True)
class Match:
    """How much of a sequence is stored. `pending` is the next block, if it is worth waiting for."""

    path: list[Node]
    partial: Node | None
    tokens: int
    pending: Node | None


class PrefixTree:
    """The index of a store of `blocks` blocks. `journal` is told of whole blocks that can be reused
    and of those that no longer can; `now` is a clock in seconds."""

    def __init__(
        self,
        blocks: int,
        journal: KvJournal | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blocks = blocks
        self._journal = journal or KvJournal()
        self._now = now
        self.clear()

    def clear(self) -> None:
        """The store is empty; leases from before are void."""
        self.root = Node((), None, -1)
        self._free = list(range(self._blocks - 1, -1, -1))
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._journal.cleared()

    @property
    def used(self) -> int:
        """Blocks that hold something or will."""
        return self._blocks - len(self._free)

    @property
    def age_s(self) -> float:
        """For how long the block has not been used that makes room next; 0 if there is none."""
        oldest = self._oldest()
        return self._now() - oldest.used_s if oldest is not None else 0.0

    def stored_hashes(self) -> Iterator[int]:
        """Hashes of all whole blocks that can be reused, each after the one before it."""
        waiting = [self.root]
        while waiting:
            for child in waiting.pop().children.values():
                # What follows a pending block is pending too.
                if child.owner is None and len(child.tokens) == BLOCK_TOKENS:
                    yield child.hash
                    waiting.append(child)

    def expected(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens are in whole blocks that are stored or soon will be."""
        node = self.root
        for start in range(0, len(token_ids), BLOCK_TOKENS):
            child = node.children.get(tuple(token_ids[start : start + BLOCK_TOKENS]))
            if child is None:
                return start
            node = child
        return len(token_ids)

    def match(self, token_ids: Sequence[int]) -> Match:
        """The longest stored prefix of these tokens."""
        node = self.root
        path: list[Node] = []
        start = 0
        while start < len(token_ids):
            wanted = tuple(token_ids[start : start + BLOCK_TOKENS])
            child = node.children.get(wanted)
            if child is None or len(wanted) < BLOCK_TOKENS:
                return self._match_partly(node, wanted, path, start)
            if child.pending:
                return Match(path, None, start, child)
            node = child
            path.append(node)
            start += BLOCK_TOKENS
        return Match(path, None, start, None)

    def _match_partly(self, node: Node, wanted: Tokens, path: list[Node], start: int) -> Match:
        closest, same = node.closest(wanted)
        if closest is None:
            return Match(path, None, start, None)
        if closest.pending:
            worth = same >= LEAST_REUSED_TOKENS
            return Match(path, None, start, closest if worth else None)
        return Match(path, closest, start + same, None)

    def hold(self, token_ids: Sequence[int]) -> Hold:
        """Keep all whole blocks of these tokens that are stored now, until `let_go`."""
        node, tokens = self.root, 0
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            child = node.children.get(tuple(token_ids[start : start + BLOCK_TOKENS]))
            if child is None or child.pending:
                break
            node, tokens = child, start + BLOCK_TOKENS
        node.refs += 1
        return Hold(node, tokens)

    def let_go(self, hold: Hold) -> None:
        """Blocks that were held may be evicted again, as those that were used now."""
        hold.node.refs -= 1
        self._touch(hold.node)

    def begin(self, rid: str, match: Match, token_ids: Sequence[int]) -> Lease:
        """Hold a match, and claim the blocks for the rest of these tokens."""
        tail = match.path[-1] if match.path else self.root
        reused = match.tokens if match.tokens >= LEAST_REUSED_TOKENS else 0
        used = [*match.path, match.partial] if match.partial else match.path
        blocks = [node.block for node in used] if reused else []
        lease = Lease(rid, tail, len(match.path) * BLOCK_TOKENS, reused, blocks, reused)
        for node in used:
            self._touch(node)
        tail.refs += 1
        self._claim(lease, token_ids)
        return lease

    def _claim(self, lease: Lease, token_ids: Sequence[int]) -> None:
        node = lease.tail
        for start in range(lease.tail_tokens, len(token_ids), BLOCK_TOKENS):
            wanted = tuple(token_ids[start : start + BLOCK_TOKENS])
            if node.closest(wanted)[1] == len(wanted):
                return
            child = self._insert(node, wanted, lease)
            if child is None:
                return
            lease.pending.append(child)
            node = child

    def store_computed(self, lease: Lease) -> Write | None:
        """Make the pending blocks whose tokens are computed ready; the caller has them stored."""
        start = lease.tail_tokens
        ready: list[Node] = []
        for node in lease.pending:
            end = start + len(ready) * BLOCK_TOKENS + len(node.tokens)
            if end > lease.computed:
                break
            ready.append(node)
        del lease.pending[: len(ready)]
        for node in ready:
            self._advance(lease, node)
        return Write(start, [node.block for node in ready]) if ready else None

    def _advance(self, lease: Lease, node: Node) -> None:
        """`node` is stored and the next on a lease's path."""
        fresh = node.owner is not None
        node.owner = None
        self._touch(node)
        if len(node.tokens) < BLOCK_TOKENS:
            lease.partial = node
            return
        if fresh:
            node.hash = block_hash(lease.tail.hash, node.tokens)
            self._journal.stored(node.hash)
        lease.tail.refs -= 1
        node.refs += 1
        lease.tail = node
        lease.tail_tokens += BLOCK_TOKENS

    def end(self, lease: Lease, token_ids: Sequence[int]) -> Write | None:
        """The sequence leaves with these tokens in the worker. Returns what of them the caller has
        to have stored."""
        for node in reversed(lease.pending):
            self._remove(node)
        lease.pending.clear()
        if lease.partial is not None and len(token_ids) > self._end_of(lease, lease.partial):
            # A longer block takes its place.
            self._remove(lease.partial)
        new: list[Node] = []
        start = lease.tail_tokens
        for position in range(start, len(token_ids), BLOCK_TOKENS):
            wanted = tuple(token_ids[position : position + BLOCK_TOKENS])
            child, same = lease.tail.closest(wanted)
            if child is None or same < len(wanted):
                child = self._insert(lease.tail, wanted, lease)
                if child is None:
                    break
                new.append(child)
            elif child.pending or child.tokens != wanted:
                break
            self._advance(lease, child)
            if not new:
                start = lease.tail_tokens
        lease.tail.refs -= 1
        self._touch(lease.tail)
        return Write(start, [node.block for node in new]) if new else None

    def _end_of(self, lease: Lease, node: Node) -> int:
        return lease.tail_tokens + len(node.tokens)

    # --- nodes ----------------------------------------------------------------------------------

    def _insert(self, parent: Node, tokens: Tokens, owner: Lease) -> Node | None:
        """A new pending node, None if every block is in use."""
        if not self._free and not self._evict():
            return None
        node = Node(tokens, parent, self._free.pop(), owner)
        parent.children[tokens] = node
        insort(parent.sorted_children, tokens)
        return node

    def _remove(self, node: Node) -> None:
        """Take a leaf out of the tree."""
        if node.removed:
            return
        parent = node.parent
        assert parent is not None
        assert not node.children
        node.removed = True
        del parent.children[node.tokens]
        del parent.sorted_children[bisect_left(parent.sorted_children, node.tokens)]
        self._free.append(node.block)
        if node.owner is None and len(node.tokens) == BLOCK_TOKENS:
            self._journal.removed(node.hash)
        self._offer(parent)

    def _touch(self, node: Node) -> None:
        """Node was used just now."""
        self._clock += 1
        node.last_used = self._clock
        node.used_s = self._now()
        self._offer(node)

    def _offer(self, node: Node) -> None:
        """List a node for eviction if it may be evicted."""
        if not self._evictable(node):
            return
        heapq.heappush(self._leaves, (node.last_used, id(node), node))
        if len(self._leaves) > 2 * self._blocks + STALE_ENTRIES:
            self._leaves = [entry for entry in self._leaves if self._current(entry)]
            heapq.heapify(self._leaves)

    def _evict(self) -> bool:
        """Free the block of the leaf that was used longest ago; False if there is none."""
        oldest = self._oldest()
        if oldest is None:
            return False
        self._remove(oldest)
        return True

    def _oldest(self) -> Node | None:
        """The leaf that was used longest ago of those that may be evicted."""
        while self._leaves:
            if self._current(self._leaves[0]):
                return self._leaves[0][2]
            heapq.heappop(self._leaves)
        return None

    def _current(self, entry: tuple[int, int, Node]) -> bool:
        used, _, node = entry
        return node.last_used == used and self._evictable(node)

    def _evictable(self, node: Node) -> bool:
        idle = node.owner is None and node.refs == 0 and not node.children
        return idle and not node.removed and node is not self.root


def common_length(some: Tokens, others: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    for index, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return index
    return min(len(some), len(others))
