"""What the router knows of caches, and of what it has sent, read when its metrics are scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.router import metric_families as families
from mlxfleet.router.routing import Routing


class RoutingCollector(Collector):
    """The index and the loads."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        index, feed, loads = self._routing.index, self._routing.feed, self._routing.loads
        nodes = index.nodes
        yield families.CACHE_INDEX_BLOCKS.of(((node,), index.blocks_of(node)) for node in nodes)
        yield families.NODE_UNREPORTED.of(((node,), loads.pending(node)) for node in nodes)
        never = dict.fromkeys(nodes, 0)
        for family, counts in (
            (families.CACHE_EVENT_GAPS, feed.gaps),
            (families.CACHE_SNAPSHOTS, feed.snapshots),
        ):
            yield family.of(((node,), count) for node, count in (never | counts).items())
        yield families.CACHE_INDEX_DROPPED.of([((), index.dropped)])
        yield families.CACHE_INDEX_LIMIT.of([((), index.max_blocks)])
