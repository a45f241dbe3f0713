"""What counts as a wrong answer to a hostile request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlxfleet.bench.hostile.judge import judge
from mlxfleet.bench.hostile.send import Outcome, parse
from mlxfleet.bench.hostile.shots import Shot, once, request

ERROR = {"error": {"message": "no", "type": "x", "param": None, "code": None}}


def shot(**fields: Any) -> Shot:
    """A request with these expectations."""
    return Shot(**{"kind": "test", "pieces": once(request(b"{}")), **fields})


def answered(
    status: int, body: object = ERROR, kind: str = "application/json", more: str = ""
) -> bytes:
    """A response's bytes."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{more}\r\n".encode() + content


def verdict(raw: bytes, **fields: Any) -> str:
    """What is wrong with these bytes as an answer."""
    of = shot(**fields)
    return judge(of, Outcome(parse(raw, of), "closed", raw, 0.1))


STREAM = b'data: {"choices": []}\n\n'


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        (answered(200, {"choices": []}), {}),
        (answered(400), {"refused": True}),
        (answered(401), {"access": "none"}),
        (answered(429, more="Retry-After: 1\r\n"), {}),
        (answered(503, more="Retry-After: 1\r\n"), {}),
        (answered(504), {"pieces": once(request(headers={b"X-Request-Timeout": b"1e-9"}))}),
        (answered(200, STREAM + b"data: [DONE]\n\n", "text/event-stream"), {}),
        (answered(200, STREAM + b'data: {"error": {}}\n\n', "text/event-stream"), {}),
        (answered(400, b"Bad Request", "text/plain"), {"parses": False}),
        (b"", {"complete": False}),
        (answered(200, {}) * 2, {"answers": 2}),
        (answered(200, b"up", "text/plain"), {"access": "none", "path": "/health"}),
    ],
)
def test_what_a_server_may_answer(raw: bytes, fields: dict[str, Any]) -> None:
    assert verdict(raw, **fields) == ""


@pytest.mark.parametrize(
    ("raw", "fields", "wrong"),
    [
        (answered(500), {}, "a failure of the server"),
        (answered(500), {"parses": False}, "a failure of the server"),
        (answered(502), {}, "a failure of the server"),
        (answered(504), {}, "a failure of the server"),
        (answered(429), {}, "no Retry-After"),
        (answered(503), {"parses": False}, "no Retry-After"),
        (answered(418), {}, "a status without a meaning"),
        (answered(400, b"Bad Request", "text/plain"), {}, "an error of type"),
        (answered(400, {"error": "no"}), {}, "not an error in OpenAI's shape"),
        (answered(400, {"detail": "no"}), {}, "not an error in OpenAI's shape"),
        (answered(200, {}), {"refused": True}, "answered although"),
        (answered(200, {}), {"access": "none"}, "a way in"),
        (answered(200, {}), {"path": "/%66leet"}, "a way in"),
        (answered(200, b"{"), {}, "not JSON"),
        (answered(200, STREAM, "text/event-stream"), {}, "a stream that ends with"),
        (answered(200, b"data: {\n\n" + STREAM, "text/event-stream"), {}, "an event that is not"),
        (answered(200, {"choices": []})[:-3], {}, "ends before its end"),
        (b"", {}, "0 answers instead of 1"),
        (answered(200, {}), {"answers": 2}, "1 answers instead of 2"),
    ],
)
def test_what_it_may_not(raw: bytes, fields: dict[str, Any], wrong: str) -> None:
    assert wrong in verdict(raw, **fields)
