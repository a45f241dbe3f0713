"""Spans recorded with OpenTelemetry, which is an extra: imported only if there is an endpoint.

Whether a request is sampled is decided once, by its client's flag or by OTEL_TRACES_SAMPLER; one
that is not leaves no traceparent in any message.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mlxfleet.common.otel_export import make_sender
from mlxfleet.common.tracing import NO_ATTRIBUTES, NO_SPAN, Attributes, Kind, Span, Tracer
from mlxfleet.common.wall_clock import WallClock

MAX_UNSENT = 4096
MAX_BATCH = 256
SEND_EVERY_MS = 1000
LAST_FLUSH_S = 2.0
# The thread that encodes spans has to give way to the event loop sooner than after the usual 5 ms.
SWITCH_INTERVAL_S = 0.0005
KINDS: dict[Kind, SpanKind] = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}

propagator = TraceContextTextMapPropagator()


class OtelSpan(Span):
    """A span of OpenTelemetry."""

    def __init__(self, span: trace.Span, clock: WallClock) -> None:
        self.span = span
        self._clock = clock
        self._open = True

    @property
    def traceparent(self) -> str:
        """W3C context of this span."""
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def rename(self, name: str) -> None:
        """Call it otherwise."""
        self.span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""
        self.span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """Something happens in it now."""
        self.span.add_event(name, attributes, self._clock.ns(time.monotonic()))

    def fail(self, why: str) -> None:
        """Mark it as failed."""
        self.span.set_status(Status(StatusCode.ERROR, why))

    def end(self, at: float | None = None) -> None:
        """It is over, by default now. Only the first end counts."""
        if self._open:
            self._open = False
            self.span.end(self._clock.ns(time.monotonic() if at is None else at))


class OtelTracer(Tracer):
    """Records spans and sends them from a thread of its own. What cannot be sent is dropped."""

    def __init__(self, endpoint: str, service: str, process: str) -> None:
        resource = Resource.create(
            {
                "service.name": service,
                "service.instance.id": process,
                "service.version": version("mlxfleet"),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )
        self._clock = WallClock()
        self._sender = make_sender(endpoint)
        # `close` takes the place of its hook at exit, which waits for half a minute.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._sender,
                max_queue_size=MAX_UNSENT,
                max_export_batch_size=MAX_BATCH,
                schedule_delay_millis=SEND_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("mlxfleet", version("mlxfleet"))
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def serve(
        self, name: str, traceparent: str, tracestate: str, *, at: float, attributes: Attributes
    ) -> Span:
        """Start the span of a request from outside, under the client's if that is valid."""
        headers = {"traceparent": traceparent, "tracestate": tracestate}
        context = propagator.extract(headers, Context())
        span = self._tracer.start_span(
            name, context, SpanKind.SERVER, attributes, start_time=self._clock.ns(at)
        )
        return self._wrapped(span)

    def start(
        self,
        name: str,
        parent: Span | str,
        *,
        at: float | None = None,
        kind: Kind = "internal",
        attributes: Attributes = NO_ATTRIBUTES,
        after: Span | None = None,
    ) -> Span:
        """Start a span under another."""
        context = context_of(parent)
        if context is None:
            return NO_SPAN
        links = [trace.Link(after.span.get_span_context())] if isinstance(after, OtelSpan) else []
        span = self._tracer.start_span(
            name,
            context,
            KINDS[kind],
            attributes,
            links,
            start_time=self._clock.ns(time.monotonic() if at is None else at),
        )
        return self._wrapped(span)

    def record(
        self,
        name: str,
        parent: Span | str,
        began: float,
        ended: float,
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> None:
        """Record a span that is over."""
        self.start(name, parent, at=began, attributes=attributes).end(ended)

    def close(self) -> None:
        """Send what is left, for a bounded time, whatever the collector does."""
        if self._sender.failing:
            self._sender.shutdown()
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(LAST_FLUSH_S)

    def _wrapped(self, span: trace.Span) -> Span:
        sampled = span.get_span_context().trace_flags.sampled
        return OtelSpan(span, self._clock) if sampled else NO_SPAN


def context_of(parent: Span | str) -> Context | None:
    """What a child of a span needs; None if the span is not recorded."""
    if isinstance(parent, OtelSpan):
        return trace.set_span_in_context(parent.span, Context())
    if not isinstance(parent, str) or not parent:
        return None
    context = propagator.extract({"traceparent": parent}, Context())
    sampled = trace.get_current_span(context).get_span_context().trace_flags.sampled
    return context if sampled else None
