"""What changes in a node's cold store, for the router: events in numbered messages.

Only the last state of a block counts, so a block that comes and goes between two messages is one
event. When too much piles up, or the router has missed a message, it gets everything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlxfleet.common.limits import HASHES_PER_MESSAGE
from mlxfleet.common.messages import KvEvents, KvSnapshot

MAX_BACKLOG = 16_384


class KvJournal:
    """Events that have not been sent. `sequence` is the number of the last message that was."""

    def __init__(self) -> None:
        self.sequence = 0
        self._cleared = False
        self._snapshot_due = False
        self._stored: dict[int, bool] = {}

    @property
    def empty(self) -> bool:
        """Whether the router has been told all."""
        return not (self._stored or self._cleared or self._snapshot_due)

    def stored(self, block: int) -> None:
        """A block, known by its hash, can be reused from now on."""
        self._note(block, True)

    def removed(self, block: int) -> None:
        """A block cannot be reused any more."""
        self._note(block, False)

    def cleared(self) -> None:
        """Nothing is stored any more."""
        self._stored.clear()
        # Who has been told nothing has nothing to forget.
        self._cleared = self.sequence > 0

    def ask_snapshot(self) -> None:
        """The router has missed something."""
        self._snapshot_due = True

    def take(self, everything: Callable[[], Iterable[int]]) -> Iterator[KvEvents | KvSnapshot]:
        """Messages that tell the router all that it does not know. `everything` gives the hashes
        of all stored blocks, each after the block before it."""
        if self.empty:
            return
        if self._snapshot_due:
            yield from self._snapshot(list(everything()))
        else:
            yield from self._events()
        self._stored.clear()
        self._cleared = self._snapshot_due = False

    def _note(self, block: int, stored: bool) -> None:
        if self._snapshot_due:
            return
        # The order of the last changes.
        self._stored.pop(block, None)
        self._stored[block] = stored
        if len(self._stored) > MAX_BACKLOG:
            self._stored.clear()
            self._snapshot_due = True

    def _events(self) -> Iterator[KvEvents]:
        changes = list(self._stored.items())
        for start in range(0, max(len(changes), 1), HASHES_PER_MESSAGE):
            part = changes[start : start + HASHES_PER_MESSAGE]
            self.sequence += 1
            yield KvEvents(
                sequence=self.sequence,
                cleared=self._cleared and start == 0,
                removed=[block for block, stored in part if not stored],
                stored=[block for block, stored in part if stored],
            )

    def _snapshot(self, blocks: list[int]) -> Iterator[KvSnapshot]:
        for start in range(0, max(len(blocks), 1), HASHES_PER_MESSAGE):
            self.sequence += 1
            yield KvSnapshot(
                sequence=self.sequence,
                first=start == 0,
                last=start + HASHES_PER_MESSAGE >= len(blocks),
                stored=blocks[start : start + HASHES_PER_MESSAGE],
            )
