"""What the router's spans say of a sequence that goes from node to node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlxfleet.common import otel
from mlxfleet.common.otel import OtelTracer
from mlxfleet.common.otel_export import SpanSender
from mlxfleet.common.tracing import Span
from mlxfleet.router.sequence_trace import SequenceTrace


class Traced:
    """A request whose only sequence is traced, and what comes of it."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(otel, "make_sender", lambda url: SpanSender(self._memory, url))
            self.tracer = OtelTracer("http://127.0.0.1:9", "mlxfleet-router", "router")
        self.request: Span = self.tracer.serve("chat", "", "", at=0.0, attributes={})
        self.sequence = SequenceTrace(self.tracer, self.request, "rid-0")

    def generates(self) -> list[ReadableSpan]:
        """The spans of its nodes, in order; ends everything."""
        self.request.end()
        self.tracer.close()
        spans = self._memory.get_finished_spans()
        self.events = [event.name for span in spans if span.name == "chat" for event in span.events]
        found = [span for span in spans if span.name == "generate"]
        return sorted(found, key=lambda span: span.start_time or 0)


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.tracer.close()


def end_of(span: ReadableSpan) -> object:
    return (span.attributes or {})["mlxfleet.end"]


def test_what_comes_after_the_end_does_not_count(traced: Traced) -> None:
    traced.sequence.sent("node-0", 0)
    traced.sequence.finished("stop", 7)
    traced.sequence.left("released")
    [span] = traced.generates()
    assert end_of(span) == "stop"
    assert (span.attributes or {})["mlxfleet.output_tokens"] == 7
    assert span.status.is_unset


@pytest.mark.parametrize("lost", [True, False])
def test_a_failover_is_an_event_and_a_linked_span(traced: Traced, lost: bool) -> None:
    first = traced.sequence.sent("node-0", 0)
    traced.sequence.moved("node-0", "dead" if lost else "draining", "node-1", lost=lost)
    second = traced.sequence.sent("node-1", 5)
    traced.sequence.finished("length", 9)
    assert first.split("-")[1] == second.split("-")[1]
    before, after = traced.generates()
    assert before.status.is_ok is not lost
    assert traced.events == ["failover"]
    assert [link.context for link in after.links] == [before.context]
    assert (after.attributes or {})["mlxfleet.attempt"] == 2


def test_a_node_that_gets_it_again_had_lost_it(traced: Traced) -> None:
    traced.sequence.sent("node-0", 0)
    traced.sequence.sent("node-0", 3)
    traced.sequence.left("released")
    before, after = traced.generates()
    assert not before.status.is_ok
    assert [end_of(before), end_of(after)] == ["the node lost it", "released"]
    assert traced.events == []


def test_nothing_happens_without_a_tracer() -> None:
    sequence = SequenceTrace()
    assert sequence.sent("node-0", 0) == sequence.sent("node-1", 1) == sequence.traceparent == ""
    sequence.moved("node-0", "dead", "node-1", lost=True)
    sequence.finished("stop", 1)
