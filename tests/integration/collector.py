"""A collector of OpenTelemetry traces: OTLP over HTTP on a free loopback port."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.integration.fleet import wait_for

# The library that is loaded by the OpenTelemetry exporter, and by nothing else.
PROTOBUF = "google/_upb/"


@dataclass(frozen=True)
class Span:
    """What arrived of a span; ids in hex, `parent` "" for none, times in ns since 1970."""

    name: str
    service: str
    process: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    events: list[str]
    links: list[str]
    failed: bool
    tracestate: str

    @classmethod
    def of(cls, message: SpanMessage, resource: dict[str, Any]) -> Span:
        return cls(
            name=message.name,
            service=resource["service.name"],
            process=resource["service.instance.id"],
            trace=message.trace_id.hex(),
            id=message.span_id.hex(),
            parent=message.parent_span_id.hex(),
            began=message.start_time_unix_nano,
            ended=message.end_time_unix_nano,
            attributes=plain(message.attributes),
            events=[event.name for event in message.events],
            links=[link.span_id.hex() for link in message.links],
            failed=message.status.code == Status.STATUS_CODE_ERROR,
            tracestate=message.trace_state,
        )


class Collector:
    """Keeps every span that arrives. Use as a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            resource = plain(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [Span.of(message, resource) for message in scope.spans]

    def trace(self, trace: str, complete: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans of a trace, as soon as it is complete."""

        def found() -> list[Span]:
            spans = [span for span in list(self.spans) if span.trace == trace]
            return spans if complete(spans) else []

        spans: list[Span] = wait_for(found, f"the spans of trace {trace}")
        return spans


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dict."""
    return {pair.key: plain_value(pair.value) for pair in attributes if isinstance(pair, KeyValue)}


def plain_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
