"""Spans recorded with OpenTelemetry, and the context that travels between processes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlxfleet.common import otel
from mlxfleet.common.otel import OtelTracer
from mlxfleet.common.otel_export import SpanSender, traces_url
from mlxfleet.common.tracing import NO_SPAN, Span

TRACE, PARENT = "ab" * 16, "cd" * 8
VALID = f"00-{TRACE}-{PARENT}-01"
# https://www.w3.org/TR/trace-context/#traceparent-header
FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# No line ends: HTTP has none in a header.
TEXT = st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])


def make_tracer(memory: InMemorySpanExporter) -> OtelTracer:
    """One that sends to a list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otel, "make_sender", lambda endpoint: SpanSender(memory, endpoint))
        return OtelTracer("http://127.0.0.1:9", "mlxfleet-router", "router")


@pytest.fixture(scope="module")
def tracer() -> Iterator[OtelTracer]:
    tracer = make_tracer(InMemorySpanExporter())
    yield tracer
    tracer.close()


def serve(tracer: OtelTracer, traceparent: str, tracestate: str = "") -> Span:
    return tracer.serve("chat", traceparent, tracestate, at=1.0, attributes={})


def valid(header: str) -> bool:
    """What the standard says of a header."""
    form = FORM.fullmatch(header.strip(" \t"))
    if form is None or form[1] == "ff" or (form[1] == "00" and form[5]):
        return False
    return int(form[2], 16) != 0 and int(form[3], 16) != 0


def changed(position: int, character: str) -> str:
    return VALID[:position] + character + VALID[position + 1 :]


HEADERS = st.one_of(
    st.text(TEXT, max_size=80),
    st.builds(changed, st.integers(0, len(VALID)), TEXT),
    st.builds(changed, st.integers(0, len(VALID)), st.sampled_from("0123456789abcdefABCDEF-")),
    st.builds("{:02x}-{}-{}-01{}".format, st.integers(0, 255), st.just(TRACE), st.just(PARENT),
              st.sampled_from(["", "-", "-more", "x"])),
    st.sampled_from([f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01"]),
)  # fmt: skip


@given(HEADERS)
def test_a_malformed_context_starts_a_new_trace(tracer: OtelTracer, header: str) -> None:
    span = serve(tracer, header)
    if valid(header):
        form = FORM.fullmatch(header.strip(" \t"))
        assert form is not None
        if not int(form[4], 16) & 1:
            assert span is NO_SPAN
            return
        assert span.traceparent.split("-")[1] == form[2]
    else:
        assert valid(span.traceparent)
        assert span.traceparent.split("-")[1] != TRACE
    assert int(span.traceparent[-2:], 16) & 1
    span.end()


def test_a_context_that_says_no_is_obeyed_everywhere(tracer: OtelTracer) -> None:
    span = serve(tracer, f"00-{TRACE}-{PARENT}-00")
    assert span is NO_SPAN
    assert tracer.start("tokenize", span) is NO_SPAN
    assert tracer.start("encode", span.traceparent) is NO_SPAN


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{TRACE}-{PARENT}-00"])
def test_nothing_is_recorded_without_a_parent(tracer: OtelTracer, parent: str) -> None:
    assert tracer.start("encode", parent) is NO_SPAN


def test_a_tree_across_processes() -> None:
    memory = InMemorySpanExporter()
    tracer = make_tracer(memory)
    root = serve(tracer, VALID, "vendor=1,other=2")
    child = tracer.start("tokenize", root, at=2.0, attributes={"a": 1})
    tracer.record("encode", child.traceparent, 2.5, 3.0, {"b": "x"})
    child.end(4.0)
    after = tracer.start("generate", root, after=child, kind="client")
    after.fail("lost")
    after.end()
    root.rename("chat tiny")
    root.set({"c": ["x", "y"]})
    root.event("failover", {"d": True})
    root.end(9.0)
    root.end(10.0)

    tracer.close()
    spans = {span.name: span for span in memory.get_finished_spans()}
    assert len(memory.get_finished_spans()) == 4
    assert set(spans) == {"chat tiny", "tokenize", "encode", "generate"}
    top, stage, far = spans["chat tiny"], spans["tokenize"], spans["encode"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert top.parent is not None
    assert f"{top.parent.span_id:016x}" == PARENT
    assert dict(top.context.trace_state) == {"vendor": "1", "other": "2"}
    assert stage.parent == top.context
    assert far.parent is not None
    assert far.parent.span_id == stage.context.span_id
    assert (far.end_time or 0) - (far.start_time or 0) == 500_000_000
    assert (top.end_time or 0) - (top.start_time or 0) == 8_000_000_000
    assert spans["generate"].links[0].context == stage.context
    assert not spans["generate"].status.is_ok
    assert top.attributes == {"c": ("x", "y")}
    assert [event.name for event in top.events] == ["failover"]
    resource = top.resource.attributes
    assert (resource["service.name"], resource["service.instance.id"]) == (
        "mlxfleet-router",
        "router",
    )


class Fickle(SpanExporter):
    """Fails as long as it is told to."""

    fails = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE if self.fails else SpanExportResult.SUCCESS


def test_a_collector_that_is_gone_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exporter = Fickle()
    sender = SpanSender(exporter, "http://here")
    spans = [ReadableSpan("a"), ReadableSpan("b")]
    for _ in range(3):
        sender.export(spans)
    assert sender.failing
    exporter.fails = False
    sender.export(spans)
    assert not sender.failing
    assert [record.getMessage() for record in caplog.records] == [
        "http://here takes no traces; they are dropped until it does",
        "http://here takes traces again; 6 spans were lost",
    ]


@pytest.mark.parametrize(
    "endpoint",
    ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces", "http://h:4318/v1/traces/"],
)
def test_where_traces_go(endpoint: str) -> None:
    assert traces_url(endpoint) == "http://h:4318/v1/traces"
