"""How nodes' machines are and what that means for them, read when metrics are scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.router import metric_families as families
from mlxfleet.router.dispatcher import Dispatcher


class WeightCollector(Collector):
    """Weights, and the slow-down that nodes report."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        """One family after the other, of nodes that are not dead."""
        weights, status = self._dispatcher.weights(), self._dispatcher.nodes.status
        yield families.NODE_WEIGHT.of(((node,), weight) for node, weight in weights.items())
        yield families.NODE_SLOWDOWN.of(((node,), status[node].slowdown) for node in weights)
