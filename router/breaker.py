"""A circuit breaker: a node that fails again and again gets no requests for a while, then one, and
more when that one went well."""

from __future__ import annotations

import enum
from collections import deque

FAULTS_TO_OPEN = 3
FAULTS_WITHIN_S = 60.0
OPEN_FIRST_S = 5.0
OPEN_MOST_S = 80.0


class BreakerState(enum.StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """One node's breaker. A fault is a lost node or a sequence that it gave up, never a refusal for
    the request's own fault or for lack of room. All times are time.monotonic().

    Half open, it lets one request pass as a probe. A probe that brings no token ends with the fault
    of its node, or with `probe_ended`.
    """

    def __init__(self) -> None:
        self._faults: deque[float] = deque(maxlen=FAULTS_TO_OPEN)
        self._open_until: float | None = None
        self._pause_s = OPEN_FIRST_S
        self._probe: str | None = None

    def state(self, now: float) -> BreakerState:
        """Whether it is open now."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def closes_in_s(self, now: float) -> float:
        """Seconds until a request may pass again; 0 if one may now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def allows(self, now: float) -> bool:
        """Whether a request may go to the node."""
        match self.state(now):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return self._probe is None

    def sent(self, rid: str, now: float) -> None:
        """A request goes to the node; half open, it is the probe."""
        if self.state(now) is BreakerState.HALF_OPEN and self._probe is None:
            self._probe = rid

    def succeeded(self, rid: str) -> None:
        """The node has brought a token of a request; that of a probe closes the breaker."""
        if rid == self._probe:
            self._faults.clear()
            self._open_until = self._probe = None
            self._pause_s = OPEN_FIRST_S

    def probe_ended(self, rid: str) -> None:
        """A request is over; if it was a probe that showed nothing, the next one is."""
        if rid == self._probe:
            self._probe = None

    def fault(self, now: float) -> None:
        """The node has failed."""
        if self._open_until is not None:
            if now >= self._open_until:
                self._pause_s = min(2 * self._pause_s, OPEN_MOST_S)
            self._open_until = max(self._open_until, now + self._pause_s)
            self._probe = None
            return
        self._faults.append(now)
        if len(self._faults) == FAULTS_TO_OPEN and now - self._faults[0] <= FAULTS_WITHIN_S:
            self._open_until = now + self._pause_s
