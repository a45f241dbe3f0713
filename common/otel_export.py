"""Sending spans to a collector, which may not be there: it is said once, and requests go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlxfleet.common.preflight import is_loopback

log = logging.getLogger(__name__)

TRACES_PATH = "/v1/traces"
TIMEOUT_S = 5.0
# They say of every attempt and every dropped span what SpanSender says once.
NOISY = ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal")


class SpanSender(SpanExporter):
    """Passes spans to an exporter and says when it stops and starts to succeed."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lost = 0

    @property
    def failing(self) -> bool:
        """Whether the last spans could not be sent."""
        return self._lost > 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, or drop them."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                log.warning("%s takes no traces; they are dropped until it does", self._endpoint)
            self._lost += len(spans)
        elif self._lost:
            log.info("%s takes traces again; %d spans were lost", self._endpoint, self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        """Close the connection, and give up an attempt that is under way."""
        self._exporter.shutdown()


def make_sender(endpoint: str) -> SpanSender:
    """What sends spans to the collector at a base URL, or at the full URL of its traces."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    session = requests.Session()
    if is_loopback(urlsplit(endpoint).hostname or ""):
        # No proxy, whatever the environment says.
        session.trust_env = False
    exporter = OTLPSpanExporter(
        traces_url(endpoint),
        timeout=TIMEOUT_S,
        compression=Compression.NoCompression,
        session=session,
    )
    return SpanSender(exporter, endpoint)


def traces_url(endpoint: str) -> str:
    """Where a collector takes traces."""
    base = endpoint.rstrip("/")
    return base if base.endswith(TRACES_PATH) else base + TRACES_PATH
