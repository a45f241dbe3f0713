"""Whether a node is well, from its reports alone: dead, hung and merely busy are told apart.

A node is well while it reports and, if it has work, its step counter moves.
"""

from __future__ import annotations

import enum
import math
from typing import get_args

from mlxfleet.common.liveness import HUNG_AFTER_S, LOAD_STUCK_S
from mlxfleet.common.messages import LoadProgress, LoadStage, NodeStatus

# A pass may take so many times as long as passes took on average before it counts as stuck.
SLOW_PASSES = 10
# A worker that dies so often while it loads does not get on with it.
MAX_LOADS = 3
# Nobody waits longer for one, whatever it says.
LONGEST_LOAD_S = 3600.0
LOAD_STAGES = get_args(LoadStage)
# Whatever a node says of its passes.
LONGEST_PASS_S = 30.0
# Over how long the rate of tokens is averaged.
RATE_OVER_S = 2.0


class State(enum.StrEnum):
    """What a node is doing, as it is shown to people."""

    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    """Ready, with requests waiting for a place."""
    DRAINING = "draining"
    """Told to take no more requests."""
    HUNG = "hung"
    """There, but it has stopped reporting or computing."""
    DEAD = "dead"
    """Its scheduler or its worker is gone."""
    FENCED = "fenced"
    """It broke the protocol: for a while it gets nothing, and nothing of it counts."""

    @property
    def well(self) -> bool:
        """Whether a sequence that is there goes on."""
        return self in (State.READY, State.BUSY, State.DRAINING)


class NodeHealth:
    """One node's health. All times are time.monotonic()."""

    def __init__(self, status: NodeStatus, now: float) -> None:
        self.draining = False
        self.tokens_per_s = 0.0
        self._heard = self._progressed = now
        self._load_began = self._load_progressed = now
        self._farthest: tuple[int, int, int] | None = None
        self._loads = 0
        self._link_closed = False
        self.left = False
        """Whether it has said that it ends."""
        self._status = status

    def report(self, status: NodeStatus, now: float) -> None:
        """Take in a report."""
        before, self._status = self._status, status
        if status.incarnation == before.incarnation and now > self._heard:
            made = status.generated_tokens - before.generated_tokens
            weight = 1 - math.exp((self._heard - now) / RATE_OVER_S)
            self.tokens_per_s += weight * (made / (now - self._heard) - self.tokens_per_s)
        working = status.can_generate and status.running > 0
        same = status.incarnation == before.incarnation and status.steps == before.steps
        if not working or not same or before.running == 0:
            self._progressed = now
        if status.loading is not None:
            self._take_load(status.loading, fresh=before.loading is None, now=now)
        if status.can_generate:
            self._loads = 0
        self._heard = now
        self._link_closed = False
        # Who has said that it ends does not go on; it may come back as a new run.
        self.left = self.left and status.incarnation == before.incarnation

    def _take_load(self, loading: LoadProgress, *, fresh: bool, now: float) -> None:
        """Take in how far it is with loading; what it has said before is no progress."""
        if fresh:
            self._loads += 1
            self._load_began = now
            self._farthest = None
        place = (LOAD_STAGES.index(loading.stage), loading.loaded_bytes, loading.done)
        if self._farthest is None or place > self._farthest:
            self._farthest = place
            self._load_progressed = now

    def loads(self, now: float) -> bool:
        """Whether it loads its model and gets on with it."""
        in_time = now - self._load_began <= LONGEST_LOAD_S
        stuck = now - self._load_progressed > LOAD_STUCK_S
        gets_on = in_time and not stuck and self._loads <= MAX_LOADS
        heard = not self._link_closed and self.silent_s(now) <= HUNG_AFTER_S
        return self._status.loading is not None and gets_on and heard

    def link_closed(self) -> None:
        """Nothing can be sent to the node until it reports again."""
        self._link_closed = True

    def leave(self) -> None:
        """It ends because it was asked to."""
        self.left = True

    @property
    def progress(self) -> tuple[str, int, int]:
        """What changes when it computes, or when it or its worker is started again."""
        return self._status.incarnation, self._status.worker_restarts, self._status.steps

    def only_stands_still(self, now: float) -> bool:
        """Whether it reports as if all were well."""
        return self._status.worker == "ready" and self.silent_s(now) <= HUNG_AFTER_S

    def worker_failed(self, restarts: int, now: float) -> bool:
        """Whether its scheduler still reports, and its worker, which had restarted so many times,
        has died since or stands still. What it computed may be the cause, unlike of a lost link."""
        if self._link_closed or self.silent_s(now) > HUNG_AFTER_S:
            return False
        died = self._status.worker_restarts > restarts or self._status.worker in ("dead", "hung")
        return died or self.state(now) is State.HUNG

    def silent_s(self, now: float) -> float:
        """Seconds since the last report."""
        return now - self._heard

    def state(self, now: float) -> State:
        """What it is doing now."""
        status = self._status
        if self.left or self._link_closed or status.worker == "dead":
            return State.DEAD
        if status.worker == "loading":
            return State.LOADING
        stuck = now - self._progressed > self._patience_s() and status.running > 0
        if status.worker == "hung" or self.silent_s(now) > HUNG_AFTER_S or stuck:
            return State.HUNG
        if self.draining:
            return State.DRAINING
        return State.BUSY if status.queued else State.READY

    def _patience_s(self) -> float:
        """How long the step counter may stand still."""
        status = self._status
        mean_pass_s = status.busy_s / status.steps if status.steps else 0.0
        return max(HUNG_AFTER_S, SLOW_PASSES * min(mean_pass_s, LONGEST_PASS_S))
