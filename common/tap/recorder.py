"""The last frames of a process, bounded by bytes.

A frame costs an append: it is kept as the object that is sent or was received, and nothing is
decoded before somebody looks.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Literal

Direction = Literal["sent", "unsent", "received", "malformed"]

# number, seconds since 1970, direction, link, identity of the peer, frame
Record = tuple[int, float, Direction, str, bytes, bytes]

# What a record takes beside its frame: the tuple, its number and time, the peer, bytes' headers.
RECORD_BYTES = 256
# A reader that is further behind than this has lost frames, so that no look takes long.
MOST_AT_ONCE = 65_536


class Recorder:
    """Keeps the newest records that together take at most `limit_bytes`.

    One thread adds; any thread may read. Records are numbered from 1, so readers see gaps.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._records: deque[Record] = deque()
        self.recorded = 0

    def add(self, at: float, direction: Direction, link: str, peer: bytes, frame: bytes) -> None:
        """Keep a frame of time `at`, and forget the oldest ones that it takes the place of. One
        that is larger than everything is only counted."""
        self.recorded += 1
        size = len(frame) + RECORD_BYTES
        if size > self._limit:
            return
        self._records.append((self.recorded, at, direction, link, peer, frame))
        self._bytes += size
        while self._bytes > self._limit:
            self._bytes -= len(self._records.popleft()[5]) + RECORD_BYTES

    def all(self) -> list[Record]:
        """All that is kept, oldest first."""
        return self._newest(self.recorded)

    def after(self, number: int) -> list[Record]:
        """What is kept of the records after `number`, oldest first."""
        while (count := min(self.recorded - number, MOST_AT_ONCE)) > 0:
            found = self._newest(count)
            # Else more were added after they were counted.
            if len(found) < count or found[0][0] <= number + 1 or count == MOST_AT_ONCE:
                return [record for record in found if record[0] > number]
        return []

    def _newest(self, count: int) -> list[Record]:
        while True:
            try:
                found = list(islice(reversed(self._records), count))
            except RuntimeError:  # the other thread has added one meanwhile
                continue
            found.reverse()
            return found


# One that only counts, in processes that are not to keep anything.
_installed = Recorder(0)


def install(recorder: Recorder) -> None:
    """Make this the process's recorder, which channels that are opened from now on use."""
    global _installed
    _installed = recorder


def installed() -> Recorder:
    """The process's recorder."""
    return _installed
