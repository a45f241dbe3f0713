"""How much of the work each node should get, from the condition of its machine.

What counts first is what is observed: passes that take longer than they did when the machine was
cool. Memory pressure and heat that the system announces are early warnings. Of these the worst
counts, because they are often one thing seen twice.

A weight falls at once, and rises slowly after things have been better for a while: a Mac that got
rest and looks well would otherwise get everything back and be hot again. None is ever 0, and what
counts is how a model's nodes compare, so the last one gets whatever there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxfleet.common.messages import NodeStatus, Telemetry

# Of its work a node keeps at least this share.
FLOOR = 0.1
# Passes of one kind differ by so much without any heat.
NOISE = 1.1
# By memory pressure: normal, warning, critical. At the last the system swaps or is about to.
MEMORY = (1.0, 0.7, 0.25)
# By thermal state: nominal, fair, serious, critical.
THERMAL = (1.0, 0.95, 0.8, 0.5)
# Better is what is above the weight by this factor, for so long; then the weight rises.
BETTER = 1.05
HOLD_S = 10.0
RISE_PER_S = 0.05


@dataclass
class Weight:
    """A node's weight, last changed at `at_s`; its condition has been better since `better_s`."""

    value: float
    at_s: float
    better_s: float | None = None

    def update(self, condition: float, now: float) -> None:
        """Follow the condition: down at once, up with patience."""
        elapsed_s, self.at_s = now - self.at_s, now
        if condition < self.value:
            self.value = condition
        if condition < min(1.0, self.value * BETTER):
            self.better_s = None
        elif self.better_s is None:
            self.better_s = now
        elif now - self.better_s >= HOLD_S:
            self.value = min(condition, self.value + RISE_PER_S * elapsed_s)


class Weights:
    """The weights of all nodes, 1 for each if they are not wanted. Times are in seconds, of one
    clock."""

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._weights: dict[str, Weight] = {}

    def report(self, status: NodeStatus, now: float) -> None:
        """Take in a report."""
        found = condition(status.slowdown, status.telemetry)
        self._weights.setdefault(status.name, Weight(found, now)).update(found, now)

    def keep(self, alive: set[str]) -> None:
        """Forget every node that is not among these."""
        for node in self._weights.keys() - alive:
            del self._weights[node]

    def among(self, nodes: Iterable[str]) -> dict[str, float]:
        """The weights of nodes that share work: 1 for the best of them, and for those of which
        nothing is known."""
        known = self._weights if self._wanted else {}
        values = {node: known[node].value if node in known else 1.0 for node in nodes}
        best = max(values.values(), default=1.0)
        return {node: value / best for node, value in values.items()}


def condition(slowdown: float, telemetry: Telemetry | None) -> float:
    """How much of its usual work a machine can take now, from FLOOR to 1."""
    found = 1.0 if slowdown <= NOISE else 1 / slowdown
    if telemetry is not None:
        found = min(
            found,
            level(MEMORY, telemetry.memory_pressure),
            level(THERMAL, telemetry.thermal_state),
        )
    return max(found, FLOOR)


def level(weights: tuple[float, ...], reached: int | None) -> float:
    """The weight for a level; 1 without a sensor."""
    return 1.0 if reached is None else weights[max(0, min(reached, len(weights) - 1))]
