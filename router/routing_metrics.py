"""Prometheus metrics of what the router knows of caches, and of what it has sent."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlxfleet.router.routing import Routing


class RoutingCollector(Collector):
    """Reads the index and the loads at scrape time."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        index, feed = self._routing.index, self._routing.feed
        blocks = GaugeMetricFamily(
            "mlxfleet_cache_index_blocks",
            "Blocks of tokens that a node is known to have cached.",
            labels=["node"],
        )
        pending = GaugeMetricFamily(
            "mlxfleet_unreported_requests",
            "Requests sent to a node that its reports do not cover yet.",
            labels=["node"],
        )
        for node in index.nodes:
            blocks.add_metric([node], index.blocks_of(node))
            pending.add_metric([node], self._routing.loads.pending(node))
        gaps = CounterMetricFamily(
            "mlxfleet_cache_event_gaps", "Messages about a cache that were missed.", labels=["node"]
        )
        snapshots = CounterMetricFamily(
            "mlxfleet_cache_snapshots", "Caches told of as a whole.", labels=["node"]
        )
        for family, counts in ((gaps, feed.gaps), (snapshots, feed.snapshots)):
            for node, count in counts.items():
                family.add_metric([node], count)
        dropped = CounterMetricFamily(
            "mlxfleet_cache_index_dropped_blocks",
            "Blocks forgotten because the index was full.",
            value=index.dropped,
        )
        yield from (blocks, pending, gaps, snapshots, dropped)
