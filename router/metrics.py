"""What the router counts itself while requests pass through it."""

from __future__ import annotations

import functools
import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    disable_created_metrics,
    generate_latest,
)

from mlxfleet.common.messages import PRIORITIES
from mlxfleet.router import metric_families as families
from mlxfleet.router.admission import Admission
from mlxfleet.router.bodies import BODY_REFUSALS
from mlxfleet.router.body_budget import BodyBudget
from mlxfleet.router.connections import CLOSINGS, Connections
from mlxfleet.router.patience import Patience
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.stages import Stages
from mlxfleet.router.token_gaps import TokenGaps
from mlxfleet.router.web_guard import CODES

ENDPOINTS = ("chat", "completions")
OUTCOMES = ("ok", "client_error", "cancelled", "backpressure", "error")
REFUSALS = ("key", "version", "model", "name", "full")


@dataclass
class RequestRecord:
    """What is recorded of a request when it is over; it `arrived` at a time.perf_counter()."""

    arrived: float = field(default_factory=time.perf_counter)
    model: str = ""
    outcome: str = "error"


class Metrics:
    """Counters and histograms, and the registry of everything that /metrics shows."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.received = families.REQUESTS_RECEIVED.counter(registry)
        self.answered = families.REQUESTS_ANSWERED.counter(registry)
        self.request_seconds = families.REQUEST_SECONDS.histogram(registry)
        self.ttft = families.TTFT_SECONDS.histogram(registry)
        self.token_gaps = TokenGaps()
        registry.register(self.token_gaps)
        self.prompt_tokens = families.PROMPT_TOKENS.counter(registry)
        self.cached_tokens = families.CACHED_PROMPT_TOKENS.counter(registry)
        self.output_tokens = families.OUTPUT_TOKENS.counter(registry)
        self.recoveries = families.RECOVERIES.counter(registry)
        self.failovers = families.FAILOVERS.counter(registry)
        self.fences = families.NODE_FENCES.counter(registry)
        self.refused_nodes = families.REFUSED_NODES.counter(registry)
        self.malformed_requests = families.MALFORMED_REQUESTS.counter(registry)
        self.refused_web = families.REFUSED_WEB.counter(registry)
        self.connections_closed = families.CONNECTIONS_CLOSED.counter(registry)
        self.bodies_refused = families.BODIES_REFUSED.counter(registry)
        self.stream_pings = families.STREAM_PINGS.counter(registry)
        self.stages = Stages()
        registry.register(self.stages)
        build = families.BUILD_INFO.gauge(registry)
        build.labels("router", version("mlxfleet"), platform.python_version()).set(1)

    def forget_node(self, node: str) -> None:
        """Show no more of a node that has been away for long."""
        self.failovers.remove_by_labels({"node": node})
        self.fences.remove_by_labels({"node": node})

    def start_at_zero(self, models: Iterable[str]) -> None:
        """Show counters of what has not happened yet, without which Prometheus takes the first time
        for no increase."""
        for reason in REFUSALS:
            self.refused_nodes.labels(reason)
        for code in CODES:
            self.refused_web.labels(code)
        for closing in CLOSINGS:
            self.connections_closed.labels(closing)
        for refusal in BODY_REFUSALS:
            self.bodies_refused.labels(refusal)
        for endpoint in ENDPOINTS:
            self.received.labels(endpoint)
        for model in models:
            for counter in (self.prompt_tokens, self.cached_tokens, self.output_tokens):
                counter.labels(model)
            for endpoint, outcome in itertools.product(ENDPOINTS, OUTCOMES):
                self.answered.labels(model, endpoint, outcome)

    def watch_admission(self, admission: Admission) -> None:
        """Show how many sequences are here, may be here, and wait."""
        in_flight = families.SEQUENCES_IN_FLIGHT.gauge(self.registry)
        in_flight.set_function(lambda: admission.sequences)
        families.SEQUENCES_LIMIT.gauge(self.registry).set(admission.max_sequences)
        waiting = families.SEQUENCES_WAITING.gauge(self.registry)
        for priority in PRIORITIES:
            depth = functools.partial(admission.depth, priority)
            waiting.labels(priority).set_function(depth)

    def watch_clients(self, connections: Connections, budget: BodyBudget) -> None:
        """Show how many connections, and how many bytes of bodies, are here and may be."""
        open_now = families.CONNECTIONS.gauge(self.registry)
        open_now.labels("busy").set_function(lambda: connections.busy)
        open_now.labels("idle").set_function(lambda: connections.idle)
        families.CONNECTIONS_LIMIT.gauge(self.registry).set(connections.limit)
        families.BODY_BYTES.gauge(self.registry).set_function(lambda: budget.held)
        families.BODY_BYTES_LIMIT.gauge(self.registry).set(budget.limit)

    def watch_patience(self, patience: Patience) -> None:
        """Show how many requests wait for a process."""
        gauge = families.REQUESTS_WITHOUT_NODE.gauge(self.registry)
        gauge.set_function(lambda: patience.waiting)

    def watch_ready(self, can_generate: Callable[[], bool]) -> None:
        """Show whether requests can be answered."""
        families.READY.gauge(self.registry).set_function(can_generate)

    @contextmanager
    def request(self, endpoint: str) -> Iterator[RequestRecord]:
        """Record a request, from its arrival to its end."""
        record = RequestRecord()
        self.received.labels(endpoint).inc()
        try:
            yield record
        finally:
            self.answered.labels(record.model, endpoint, record.outcome).inc()
            taken_s = time.perf_counter() - record.arrived
            self.request_seconds.labels(record.model, endpoint).observe(taken_s)

    def observe_tokens(self, sequence: Sequence, count: int, now: float) -> None:
        """Record when `count` tokens of a sequence came: `now` (time.perf_counter)."""
        if sequence.last_token is None:
            self.ttft.labels(sequence.model).observe(now - sequence.arrived)
        else:
            self.token_gaps.of[sequence.model].observe((now - sequence.last_token) / count)
        sequence.last_token = now

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
