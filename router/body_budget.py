"""How many bytes of request bodies may be in memory at once, and whose.

Bodies are shared out by dynamic thresholds (Choudhury and Hahne, 1998): a client may hold at most a
multiple of what is left, so one client alone gets most of the memory, and never all of it.
"""

from __future__ import annotations

from collections import Counter

SMALL_BYTES = 64 * 1024
"""Bodies up to this size have a part of the memory that large ones cannot take."""

SMALL_SHARE = 4
"""The small ones' part of the memory, as a divisor."""

THRESHOLD = 2
"""A client may hold this many times what is free: alone two thirds, two of them 40% each."""


class Pool:
    """Bytes that clients hold, of at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()
        self.held = 0

    def has_room(self, client: str, size: int) -> bool:
        """Whether a client may hold `size` bytes more."""
        left = self.limit - self.held - size
        return self._held[client] + size <= THRESHOLD * left

    def take(self, client: str, size: int) -> None:
        """Hold `size` bytes more."""
        self._held[client] += size
        self.held += size

    def give_back(self, client: str, size: int) -> None:
        """Hold `size` bytes less."""
        self.held -= size
        self._held[client] -= size
        if not self._held[client]:
            del self._held[client]


class BodyBudget:
    """The memory for the bodies of all connections together, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._small = Pool(limit // SMALL_SHARE)
        self._large = Pool(limit - self._small.limit)

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._small.held + self._large.held

    def pool_for(self, client: str, size: int) -> Pool | None:
        """Where there is room for a body of `size` bytes."""
        if size <= SMALL_BYTES and self._small.has_room(client, size):
            return self._small
        return self._large if self._large.has_room(client, size) else None


class Lease:
    """The bytes of one body."""

    def __init__(self, budget: BodyBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._pool: Pool | None = None
        self.size = 0

    def grow(self, more: int) -> bool:
        """Hold `more` bytes. False if there is no room, and then none are held at all."""
        size = self.size + more
        self.release()
        self._pool = self._budget.pool_for(self._client, size)
        if self._pool is None:
            return False
        self._pool.take(self._client, size)
        self.size = size
        return True

    def release(self) -> None:
        """Hold nothing any more."""
        if self._pool is not None:
            self._pool.give_back(self._client, self.size)
        self._pool, self.size = None, 0
