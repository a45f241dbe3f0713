"""What the router knows of the processes behind it, read when its metrics are scraped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.common.liveness import resident_bytes
from mlxfleet.router import metric_families as families
from mlxfleet.router.breaker import BreakerState
from mlxfleet.router.dispatcher import Dispatcher
from mlxfleet.router.health import State
from mlxfleet.router.pool import Pool


class FleetCollector(Collector):
    """Front-end processes, by the role that they have, and nodes."""

    def __init__(self, front: Mapping[str, Pool], dispatcher: Dispatcher) -> None:
        self._front = front
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield from self._processes()
        yield from self._nodes()

    def _processes(self) -> Iterator[Metric]:
        nodes = self._dispatcher.nodes
        now = time.monotonic()
        front = [(role, peer) for role, pool in self._front.items() for peer in pool.peers.values()]
        restarts = {peer.name: peer.restarts for _, peer in front}
        for name, status in nodes.status.items():
            restarts[name] = nodes.pool.peers[name].restarts
            restarts[f"{name}/worker"] = status.worker_restarts
        channels = [pool.channel for pool in (*self._front.values(), nodes.pool)]
        dropped = {peer.name: peer.dropped_frames for _, peer in front}
        dropped["router"] = sum(channel.dropped_frames for channel in channels)
        yield families.PROCESS_RESTARTS.of(((name,), count) for name, count in restarts.items())
        yield families.DROPPED_FRAMES.of(((name,), count) for name, count in dropped.items())
        yield families.PROCESS_SILENCE.of(((p.name,), now - p.last_seen) for _, p in front)
        memory = {(role, peer.name): peer.rss_bytes for role, peer in front}
        memory["router", "router"] = resident_bytes()
        yield families.PROCESS_MEMORY.of(memory.items())

    def _nodes(self) -> Iterator[Metric]:
        nodes = self._dispatcher.nodes
        names = list(nodes.status)
        takes = {status.name for status in nodes.ready()}
        loads = self._dispatcher.loads()
        yield families.NODE_READY.of(((n, nodes.model_of(n)), n in takes) for n in names)
        yield families.NODE_STATE.of(
            ((name, state), nodes.state(name) is state) for name in names for state in State
        )
        yield families.NODE_BREAKER.of(
            ((name, state), nodes.breaker_state(name) is state)
            for name in names
            for state in BreakerState
        )
        yield families.NODE_SILENCE.of(((name,), nodes.silent_s(name)) for name in names)
        yield families.NODE_SEQUENCES.of(((name,), loads[name]) for name in names)
