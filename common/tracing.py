"""Spans of requests across processes, for code that need not know who records them.

Without --otlp-endpoint nobody does: these base classes do nothing, and `traceparent` is "" in every
message. Times are seconds of time.monotonic(), which is the same clock as time.perf_counter() on
Linux and macOS; hot paths note times and make spans of them when something is over.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit

from mlxfleet.common.config import ObserveOptions
from mlxfleet.common.errors import ConfigError

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
Kind = Literal["internal", "client"]
Role = Literal["router", "tokenizer", "detokenizer", "scheduler"]

NO_ATTRIBUTES: Attributes = MappingProxyType({})
RECORDER = "mlxfleet.common.otel"


class Span:
    """A span that nobody records, and the base of one that somebody does."""

    @property
    def traceparent(self) -> str:
        """W3C context for spans of other processes that belong to it; "" if it is not recorded."""
        return ""

    def rename(self, name: str) -> None:
        """Call it otherwise."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""

    def event(self, name: str, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """Something happens in it now."""

    def fail(self, why: str) -> None:
        """Mark it as failed."""

    def end(self, at: float | None = None) -> None:
        """It is over, by default now. Only the first end counts."""


class Tracer:
    """Records nothing, and is the base of one that does."""

    def serve(
        self, name: str, traceparent: str, tracestate: str, *, at: float, attributes: Attributes
    ) -> Span:
        """Start the span of a request from outside; `traceparent` and `tracestate` are its headers.
        Without a valid context in them it starts a trace."""
        return NO_SPAN

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
        """Start a span under one of this process, or under the traceparent of another's; it is not
        recorded if the parent is not. It is linked to the one that it comes `after`."""
        return NO_SPAN

    def record(
        self,
        name: str,
        parent: Span | str,
        began: float,
        ended: float,
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> None:
        """Record a span that is over."""

    def close(self) -> None:
        """Send what is left, for a bounded time."""


NO_SPAN = Span()
NO_TRACER = Tracer()


def make_tracer(observe: ObserveOptions, role: Role, process: str) -> Tracer:
    """What records the spans of a process; starts a thread that sends them, if there is an
    endpoint to send them to."""
    if observe.otlp_endpoint is None:
        return NO_TRACER
    from mlxfleet.common.otel import OtelTracer

    return OtelTracer(observe.otlp_endpoint, f"mlxfleet-{role}", process)


def check_tracing(observe: ObserveOptions) -> None:
    """ConfigError if spans are wanted and cannot be sent."""
    if observe.otlp_endpoint is None:
        return
    if not is_http_url(observe.otlp_endpoint):
        raise ConfigError(
            f"--otlp-endpoint: {observe.otlp_endpoint!r} is not a URL like http://HOST:4318"
        )
    try:
        importlib.import_module(RECORDER)
    except ImportError as error:
        raise ConfigError(
            f"--otlp-endpoint: tracing needs {error.name}, which is not installed; install the"
            " extra with pip install 'mlxfleet[tracing]', or '.[tracing]' in a checkout"
        ) from error


def is_http_url(text: str) -> bool:
    """Whether a text is the URL of an HTTP server, perhaps with a path, and nothing else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and not (parts.query or parts.fragment or any(c.isspace() for c in text))
    )
