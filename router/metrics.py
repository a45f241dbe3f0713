"""Prometheus metrics of the router and of what it knows about the processes behind it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlxfleet.common.liveness import resident_bytes
from mlxfleet.common.messages import NodeStatus
from mlxfleet.router.admission import PRIORITIES, Admission
from mlxfleet.router.breaker import BreakerState
from mlxfleet.router.health import State
from mlxfleet.router.nodes import Nodes
from mlxfleet.router.pool import Pool
from mlxfleet.router.sequences import Sequence

STAGE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What the router counts itself."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mlxfleet_requests",
            "HTTP requests for generation, by outcome.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.ttft = Histogram(
            "mlxfleet_time_to_first_token_seconds",
            "From the start of a sequence to its first token at the router.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "mlxfleet_inter_token_seconds",
            "Between two tokens of a sequence at the router.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.end_to_end = Histogram(
            "mlxfleet_request_seconds",
            "From the arrival of a request to its last byte.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "mlxfleet_prompt_tokens", "Prompt tokens of started requests.", registry=self.registry
        )
        self.output_tokens = Counter(
            "mlxfleet_output_tokens", "Tokens received from nodes.", registry=self.registry
        )
        self.recoveries = Counter(
            "mlxfleet_recoveries",
            "Sequences resumed after a process behind them restarted or lost messages.",
            registry=self.registry,
        )
        self.failovers = Counter(
            "mlxfleet_failovers",
            "Sequences that went on on another node because theirs was lost.",
            registry=self.registry,
        )
        self.refused_nodes = Counter(
            "mlxfleet_refused_nodes",
            "Nodes that were not let in: key, version, model (or its tokenizer), name, full.",
            ["reason"],
            registry=self.registry,
        )
        self.stage = Histogram(
            "mlxfleet_stage_seconds",
            "What the router's stages of a request take: validate, tokenize, route, send.",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "mlxfleet_sequences_in_flight", "Sequences in the router.", registry=self.registry
        )
        self.waiting = Gauge(
            "mlxfleet_sequences_waiting",
            "Sequences that wait in the router for a place on a node.",
            ["priority"],
            registry=self.registry,
        )

    def watch_admission(self, admission: Admission) -> None:
        """Show how many sequences are here and wait."""
        self.in_flight.set_function(lambda: admission.sequences)
        for priority in PRIORITIES:
            depth = self.waiting.labels(priority)
            depth.set_function(functools.partial(admission.depth, priority))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage of a request that does not fail."""
        began = time.perf_counter()
        yield
        self.stage.labels(stage).observe(time.perf_counter() - began)

    def observe_tokens(self, sequence: Sequence, count: int, now: float) -> None:
        """Record the arrival of `count` tokens at `now` (time.perf_counter)."""
        self.output_tokens.inc(count)
        if sequence.last_token is None:
            self.ttft.observe(now - sequence.started)
        else:
            self.inter_token.observe((now - sequence.last_token) / count)
        sequence.last_token = now

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class FleetCollector(Collector):
    """Reads the processes' last reports at scrape time."""

    def __init__(
        self,
        pools: dict[str, Pool],
        nodes: Nodes,
    ) -> None:
        self._pools = pools
        self._fleet = nodes

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield from self._processes()
        yield from self._nodes()

    def _processes(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily(
            "mlxfleet_process_restarts", "Restarts seen by the router.", labels=["process"]
        )
        dropped = CounterMetricFamily(
            "mlxfleet_dropped_frames", "Malformed frames dropped.", labels=["process"]
        )
        silence = GaugeMetricFamily(
            "mlxfleet_process_silence_seconds", "Since the last heartbeat.", labels=["process"]
        )
        memory = GaugeMetricFamily(
            "mlxfleet_process_memory_bytes", "Resident memory.", labels=["process"]
        )
        memory.add_metric(["router"], resident_bytes())
        own = sum(pool.channel.dropped_frames for pool in self._pools.values())
        dropped.add_metric(["router"], own)
        now = time.monotonic()
        for pool in self._pools.values():
            for peer in pool.peers.values():
                restarts.add_metric([peer.name], peer.restarts)
                dropped.add_metric([peer.name], peer.dropped_frames)
                silence.add_metric([peer.name], now - peer.last_seen)
                memory.add_metric([peer.name], peer.rss_bytes)
        for status in self._fleet.status.values():
            worker = f"{status.name}/worker"
            restarts.add_metric([worker], status.worker_restarts)
            dropped.add_metric([worker], status.worker_dropped_frames)
        yield from (restarts, dropped, silence, memory)

    def _nodes(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "mlxfleet_node_ready", "1 if the node gets requests.", labels=["node"]
        )
        takes = {status.name for status in self._fleet.ready()}
        states = GaugeMetricFamily(
            "mlxfleet_node_state", "1 for the state that the node is in.", labels=["node", "state"]
        )
        breakers = GaugeMetricFamily(
            "mlxfleet_node_breaker",
            "1 for the state of the node's circuit breaker.",
            labels=["node", "state"],
        )
        for name in self._fleet.status:
            ready.add_metric([name], name in takes)
            for state in State:
                states.add_metric([name, state], self._fleet.state(name) is state)
            for broken in BreakerState:
                breakers.add_metric([name, broken], self._fleet.breaker_state(name) is broken)
        yield from (ready, states, breakers)
        for name, text, read in NODE_GAUGES:
            family = GaugeMetricFamily(name, text, labels=["node"])
            for status in self._fleet.status.values():
                family.add_metric([status.name], float(read(status)))
            yield family
        for name, text, read in NODE_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["node"])
            for status in self._fleet.status.values():
                counter.add_metric([status.name], float(read(status)))
            yield counter


NodeFigure = tuple[str, str, Callable[[NodeStatus], float]]

NODE_GAUGES: list[NodeFigure] = [
    ("mlxfleet_queue_depth", "Sequences waiting on the node.", lambda s: s.queued),
    ("mlxfleet_running_rows", "Sequences in the worker.", lambda s: s.running),
    (
        "mlxfleet_waiting_prefill_tokens",
        "Prompt tokens to be computed for sequences on the node.",
        lambda s: s.queued_prefill_tokens + s.running_prefill_tokens,
    ),
    (
        "mlxfleet_prefill_tokens_per_second",
        "How fast the node computes prompts beside the rows that decode.",
        lambda s: s.prefill_tokens_per_s,
    ),
    (
        "mlxfleet_decode_step_seconds",
        "A decode step with one row more than now, by the measured cost of passes.",
        lambda s: s.decode_step_s,
    ),
    (
        "mlxfleet_prefix_cache_age_seconds",
        "For how long the block has not been used that makes room next.",
        lambda s: s.cold_age_s,
    ),
    ("mlxfleet_kv_used_bytes", "KV cache reserved.", lambda s: s.kv_used_bytes),
    (
        "mlxfleet_kv_budget_bytes",
        "KV cache that may be reserved.",
        lambda s: s.model.kv_budget_bytes if s.model else 0,
    ),
    (
        "mlxfleet_prefix_cache_blocks",
        "Blocks of the prefix cache; 0 if the model's prefixes cannot be reused.",
        lambda s: s.model.cold_blocks if s.model else 0,
    ),
    (
        "mlxfleet_prefix_cache_used_blocks",
        "Blocks of the prefix cache that hold something.",
        lambda s: s.cold_blocks_used,
    ),
    ("mlxfleet_worker_memory_bytes", "Memory that MLX holds.", lambda s: s.worker_memory_bytes),
]

NODE_COUNTERS: list[NodeFigure] = [
    ("mlxfleet_generated_tokens", "Tokens generated.", lambda s: s.generated_tokens),
    ("mlxfleet_worker_steps", "Worker steps.", lambda s: s.steps),
    ("mlxfleet_worker_busy_seconds", "Time in worker steps.", lambda s: s.busy_s),
    (
        "mlxfleet_worker_idle_seconds",
        "Time between worker steps in which there were sequences to run.",
        lambda s: s.idle_s,
    ),
    (
        "mlxfleet_preemptions",
        "Sequences sent back to the queue because others needed their memory.",
        lambda s: s.preemptions,
    ),
    (
        "mlxfleet_prefilled_tokens",
        "Prompt tokens that were computed.",
        lambda s: s.prefilled_tokens,
    ),
    (
        "mlxfleet_prefix_cache_hit_tokens",
        "Prompt tokens that came out of the prefix cache instead.",
        lambda s: s.cached_tokens,
    ),
]
