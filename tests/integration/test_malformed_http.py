"""What is not proper HTTP gets an answer, and no traceback in the log."""

from __future__ import annotations

import socket
import urllib.parse

import pytest

from tests.integration.fleet import Fleet

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"
BEGINNINGS = [b"POST /v1/completions", b"PUT /v1/completions", b"GET /nowhere"]


def answer_to(fleet: Fleet, request: bytes) -> bytes:
    """The status line of the answer."""
    address = urllib.parse.urlsplit(fleet.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        return connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("value", [b"\xff", b"200-maybe"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_an_expectation_that_is_not_known_fails(
    tiny_fleet: Fleet, beginning: bytes, value: bytes
) -> None:
    head = HEAD.replace(BEGINNINGS[0], beginning)
    assert b" 417 " in answer_to(tiny_fleet, head + b"Expect: " + value + b"\r\n\r\n")


def test_a_client_that_waits_to_be_asked_is_asked(tiny_fleet: Fleet) -> None:
    assert b" 100 " in answer_to(tiny_fleet, HEAD + b"Expect: 100-Continue\r\n\r\n")


def test_a_request_that_cannot_be_parsed_is_counted_and_not_logged(tiny_fleet: Fleet) -> None:
    before = tiny_fleet.metric("mlxfleet_malformed_requests_total")
    assert b" 400 " in answer_to(tiny_fleet, HEAD + b"Space : x\r\n\r\n")
    assert tiny_fleet.metric("mlxfleet_malformed_requests_total") == before + 1
    assert "Traceback" not in tiny_fleet.output
