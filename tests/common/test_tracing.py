"""Who records spans: nobody, unless it is asked for and can be done."""

from __future__ import annotations

import sys

import pytest

from mlxfleet.common.config import ObserveOptions
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.tracing import NO_SPAN, NO_TRACER, RECORDER, check_tracing, make_tracer

NO_URLS = ["", "localhost:4318", "grpc://host:4317", "http://", "http://a host", "http://host?x=1"]
NO_URLS += ["http://host:x", "http://host:0", "http://host:99999"]


def test_nothing_is_recorded_by_default() -> None:
    tracer = make_tracer(ObserveOptions(), "router", "router")
    assert tracer is NO_TRACER
    root = tracer.serve("chat", f"00-{'a' * 32}-{'b' * 16}-01", "", at=0.0, attributes={})
    child = tracer.start("tokenize", root)
    assert root is child is NO_SPAN
    assert child.traceparent == ""
    check_tracing(ObserveOptions())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4318", "https://tempo.example/otlp", "http://[::1]:4318/v1/traces"]
)
def test_urls_of_collectors(url: str) -> None:
    check_tracing(ObserveOptions(otlp_endpoint=url))


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-endpoint"):
        check_tracing(ObserveOptions(otlp_endpoint=url))


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, RECORDER, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"opentelemetry\.sdk\.trace.*mlxfleet\[tracing\]"):
        check_tracing(ObserveOptions(otlp_endpoint="http://127.0.0.1:4318"))
