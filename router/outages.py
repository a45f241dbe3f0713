"""Which nodes are hung or lost, so that each time is logged once, with how long it took at its end.

A node whose passes stand still looks well again as soon as its requests were moved away, and hung
again after the next one. That is one outage, until it computes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mlxfleet.router.health import NodeHealth, State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outage:
    """Since when (time.monotonic()) a node is lost. `progress` is what it had computed by then, if
    that alone can show that it is back."""

    state: State
    since: float
    progress: tuple[str, int, int] | None


class Outages:
    """The outages of all nodes."""

    def __init__(self) -> None:
        self._current: dict[str, Outage] = {}

    def began(self, node: str, state: State, health: NodeHealth, now: float) -> None:
        """A node that was well is not any more."""
        if node in self._current:
            return
        stuck = state is State.HUNG and health.only_stands_still(now)
        self._current[node] = Outage(state, now, health.progress if stuck else None)
        log.warning("%s is %s", node, state)

    def ended(self, node: str, health: NodeHealth, now: float) -> None:
        """A node looks well. That is the end of its outage, unless it has to compute first."""
        outage = self._current.get(node)
        if outage is None or outage.progress == health.progress:
            return
        del self._current[node]
        log.info("%s is well again; it was %s for %.1f s", node, outage.state, now - outage.since)

    def forget(self, node: str) -> None:
        """A node is forgotten."""
        self._current.pop(node, None)
