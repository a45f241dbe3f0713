"""Which nodes have which blocks of tokens, by chained hash.

A block is known to be on a node because the node has said so, or promised to be there because a
prompt with it has just been sent: a node computes a prefix once for all that need it.

Nodes are bits of a mask, so a prompt is looked up for all of them in one walk along its blocks.
Memory is bounded: of a full index the node with the most blocks loses those that were used longest
ago, ends of prompts before their beginnings. Then they count as not cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

# Of a node's blocks, how many make room at once, so that the search for them costs next to nothing.
EVICTED_SHARE = 1 / 16


class CacheIndex:
    """Up to `max_blocks` blocks that nodes have, each counted once per node that has it."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._holders: dict[int, int] = {}
        # Per node its blocks, those used longest ago first.
        self._stored: dict[str, dict[int, None]] = {}
        self._promised_to: dict[int, int] = {}
        self._promises: dict[str, dict[int, int]] = {}
        self.blocks = 0
        self.dropped = 0

    def blocks_of(self, node: str) -> int:
        """How many blocks a node is known to have."""
        return len(self._stored.get(node, ()))

    @property
    def nodes(self) -> list[str]:
        """Nodes of which anything is known."""
        return list(self._bits)

    def store(self, node: str, blocks: Sequence[int]) -> None:
        """A node has these blocks, each after the one before it."""
        bit = self._bit(node)
        stored = self._stored[node]
        # The end of a prompt comes first, and so makes room first.
        for block in reversed(blocks):
            if block not in stored:
                self.blocks += 1
                self._holders[block] = self._holders.get(block, 0) | bit
            else:
                del stored[block]
            stored[block] = None
        while self.blocks > self.max_blocks:
            self._make_room()

    def drop(self, node: str, blocks: Iterable[int]) -> None:
        """A node does not have these blocks any more."""
        stored = self._stored.get(node)
        if stored is None:
            return
        bit = self._bits[node]
        for block in blocks:
            if block in stored:
                del stored[block]
                self.blocks -= 1
                clear(self._holders, block, bit)

    def use(self, node: str, blocks: Sequence[int]) -> None:
        """A prompt with these blocks goes to a node."""
        stored = self._stored.get(node, {})
        for block in reversed(blocks):
            if block in stored:
                del stored[block]
                stored[block] = None

    def promise(self, node: str, blocks: Iterable[int]) -> None:
        """A node will have these blocks."""
        bit = self._bit(node)
        promises = self._promises[node]
        for block in blocks:
            promises[block] = promises.get(block, 0) + 1
            self._promised_to[block] = self._promised_to.get(block, 0) | bit

    def withdraw(self, node: str, blocks: Iterable[int]) -> None:
        """Take a promise back; nothing if the node has been removed since."""
        promises = self._promises.get(node)
        if promises is None:
            return
        bit = self._bits[node]
        for block in blocks:
            left = promises.get(block, 0) - 1
            if left > 0:
                promises[block] = left
            elif left == 0:
                del promises[block]
                clear(self._promised_to, block, bit)

    def remove(self, node: str) -> None:
        """Forget a node wholly."""
        self.empty(node)
        promises = self._promises.pop(node, {})
        bit = self._bits.pop(node, 0)
        for block in promises:
            clear(self._promised_to, block, bit)
        self._stored.pop(node, None)
        self._names.pop(bit, None)

    def empty(self, node: str) -> None:
        """A node has nothing any more, but for what is promised."""
        self.drop(node, list(self._stored.get(node, ())))

    def matched_blocks(self, blocks: Iterable[int]) -> dict[str, int]:
        """With how many of these blocks, from the first on, each node can begin; none if it is not
        in the answer."""
        matched = {}
        having = -1
        count = 0
        holders, promised = self._holders.get, self._promised_to.get
        for block in blocks:
            still = having & (holders(block, 0) | promised(block, 0))
            if still != having:
                if count:
                    matched.update(dict.fromkeys(self._named(having & ~still), count))
                having = still
                if not having:
                    break
            count += 1
        if count and having > 0:
            matched.update(dict.fromkeys(self._named(having), count))
        return matched

    def _named(self, mask: int) -> Iterable[str]:
        while mask:
            bit = mask & -mask
            yield self._names[bit]
            mask ^= bit

    def _bit(self, node: str) -> int:
        bit = self._bits.get(node)
        if bit is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            self._bits[node] = bit
            self._names[bit] = node
            self._stored[node] = {}
            self._promises[node] = {}
        return bit

    def _make_room(self) -> None:
        node = max(self._stored, key=self.blocks_of)
        stored = self._stored[node]
        oldest = list(islice(stored, max(1, int(len(stored) * EVICTED_SHARE))))
        self.dropped += len(oldest)
        self.drop(node, oldest)


def clear(masks: dict[int, int], block: int, bit: int) -> None:
    """Take one bit out of a block's mask, and the block if that was the last."""
    left = masks[block] & ~bit
    if left:
        masks[block] = left
    else:
        del masks[block]
