"""Nodes that broke the protocol, and for how long they get nothing.

A fence is longer with each breach, and a new run of a node stays behind it. It also counts for what
a node cannot change as cheaply as its name: the key that it holds and the address that it comes
from. Where nodes in good standing share a key or an address, it says nothing of who it was, and
only the name counts.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mlxfleet.common.channels import Origin
from mlxfleet.common.limits import reason

log = logging.getLogger(__name__)

FIRST_S = 60.0
LONGEST_S = 3600.0
# After so long without a breach a node starts anew.
FORGIVEN_AFTER_S = 6 * 3600.0
LOCAL = ("127.0.0.1", "::1")
MAX_FENCES = 4096
# What an honest node may do once or twice by an accident of timing.
DOUBTS_TO_FENCE = 3
DOUBTS_WITHIN_S = 60.0

Breach = Literal["malformed", "tokens", "denial", "refusal", "silence", "flood", "error"]
BREACHES: tuple[Breach, ...] = get_args(Breach)


@dataclass
class Fence:
    """Closed until a time of time.monotonic(); `pause_s` is how long it was closed last."""

    until: float
    pause_s: float
    last_breach: float
    why: str


class Fences:
    """All fences, by name, key and address. `now` is time.monotonic()."""

    def __init__(self) -> None:
        self._fences: OrderedDict[str, Fence] = OrderedDict()
        self._doubts: dict[tuple[str, Breach], deque[float]] = {}

    def breach(
        self, node: str, origin: Origin, honest: Iterable[Origin], why: str, now: float
    ) -> bool:
        """A node broke the protocol; True if it was not behind a fence already. `honest` is where
        the nodes in good standing come from."""
        name, *marks = self._marks(node, origin, list(honest))
        fence = self._fences.get(name)
        if fence is not None and now < fence.until:
            # It goes on as before: the fence counts from the last breach.
            fence.until, fence.last_breach = now + fence.pause_s, now
            return False
        pause_s = FIRST_S
        if fence is not None and now - fence.last_breach < FORGIVEN_AFTER_S:
            pause_s = min(2 * fence.pause_s, LONGEST_S)
        for mark in (name, *marks):
            self._fences[mark] = Fence(now + pause_s, pause_s, now, reason(why))
            self._fences.move_to_end(mark)
        while len(self._fences) > MAX_FENCES:
            self._fences.popitem(last=False)
        log.error("%s broke the protocol and gets nothing for %.0f s: %s", node, pause_s, why)
        return True

    def doubt(self, node: str, kind: Breach, now: float) -> bool:
        """A node did what can happen to an honest one; True if it did so too often."""
        if len(self._doubts) > MAX_FENCES:
            self._doubts.pop(next(iter(self._doubts)))
        times = self._doubts.setdefault((node, kind), deque(maxlen=DOUBTS_TO_FENCE))
        times.append(now)
        return len(times) == DOUBTS_TO_FENCE and now - times[0] <= DOUBTS_WITHIN_S

    def closed(
        self, node: str, origin: Origin, honest: Iterable[Origin], now: float
    ) -> Fence | None:
        """The fence that a node is behind."""
        fences = map(self._fences.get, self._marks(node, origin, list(honest)))
        return next((f for f in fences if f is not None and now < f.until), None)

    def lift(self, node: str, origin: Origin) -> bool:
        """Let a node in again, as an operator wishes; False if it was not fenced."""
        lifted = [self._fences.pop(mark, None) for mark in self._marks(node, origin, [])]
        return any(fence is not None for fence in lifted)

    @staticmethod
    def _marks(node: str, origin: Origin, honest: list[Origin]) -> list[str]:
        """By what a node is known, its name first."""
        marks = [f"name {node}"]
        if origin.key and all(other.key != origin.key for other in honest):
            marks.append(f"key {origin.key}")
        # On one machine all share that, also those that come later.
        remote = origin.address and origin.address not in LOCAL
        if remote and all(other.address != origin.address for other in honest):
            marks.append(f"address {origin.address}")
        return marks
