"""What clients can hold of the router before their requests are admitted is bounded, in memory and
in time, and half-closed clients are answered."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, wait_for

MB = 1_000_000
FLAGS = (
    *("--engine", "sim", "--sim-step-ms", "5", "--max-body-mb", "2", "--max-bodies-mb", "4"),
    *("--header-timeout-s", "1", "--body-timeout-s", "1", "--client-stall-s", "1"),
    *("--keep-alive-s", "1", "--max-connections", "20"),
)
LONG = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def fleet(demo_model: Path) -> Iterator[Fleet]:
    with Fleet("--model", str(demo_model), *FLAGS) as running:
        yield running


def connect(fleet: Fleet) -> socket.socket:
    """A connection that nothing was sent on."""
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(size: int, headers: str = "", version: str = "1.1") -> bytes:
    """The head of a completion request."""
    lines = f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\n"
    lines += "Content-Type: application/json\r\n"
    return f"{lines}{headers}Content-Length: {size}\r\n\r\n".encode()


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with connection, contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def status_and_code(answer: bytes) -> tuple[int, str]:
    """Of an error."""
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["error"]["code"]


def ask(fleet: Fleet, body: dict[str, object], **options: str) -> socket.socket:
    """A connection with a whole request sent."""
    connection = connect(fleet)
    data = json.dumps(body).encode()
    connection.sendall(head(len(data), **options) + data)
    return connection


# --- bodies ---------------------------------------------------------------------------------------


def test_bodies_in_flight_are_bounded_and_small_ones_still_get_in(fleet: Fleet) -> None:
    """The second client of 1.9 MB bodies finds no room; requests of usual size do not notice."""
    refused = fleet.metric("mlxfleet_request_bodies_refused_total", reason="memory")
    started = b'{"prompt":"' + b"a" * 900_000
    unfinished = []
    for _ in range(6):
        connection = connect(fleet)
        connection.sendall(head(1_900_000))
        threading.Thread(target=send_quietly, args=(connection, started), daemon=True).start()
        unfinished.append(connection)
    wait_for(
        lambda: fleet.metric("mlxfleet_request_bodies_refused_total", reason="memory") > refused,
        "a body to be refused",
    )
    assert fleet.metric("mlxfleet_request_body_bytes") <= 4 * MB
    assert fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})[0] == 200
    answered, _, _ = select.select(unfinished, [], [], 10)
    assert answered
    for connection in answered:
        assert status_and_code(connection.recv(65536)) == (429, "bodies_in_flight")
    for connection in unfinished:
        connection.close()
    wait_for(lambda: fleet.metric("mlxfleet_request_body_bytes") == 0, "the bodies to be let go")


def send_quietly(connection: socket.socket, data: bytes) -> None:
    """Send what may be refused."""
    with contextlib.suppress(OSError):
        connection.sendall(data)


def test_a_body_that_does_not_come_is_not_waited_for(fleet: Fleet) -> None:
    connection = connect(fleet)
    connection.sendall(head(1000) + b'{"prompt":')
    assert status_and_code(everything(connection)) == (408, "body_timeout")


@pytest.mark.parametrize("data", [gzip.compress(bytes(50 * MB)), b"not gzip"])
def test_compressed_bodies_are_refused_with_what_is_accepted(fleet: Fleet, data: bytes) -> None:
    connection = connect(fleet)
    connection.sendall(head(len(data), "Content-Encoding: gzip\r\nConnection: close\r\n") + data)
    answer = everything(connection)
    assert status_and_code(answer) == (415, "unsupported_content_encoding")
    assert b"\r\nAccept-Encoding: identity\r\n" in answer


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"prompt":[' + b"1," * 500_000 + b"1]}", "prompt", "context_length_exceeded"),
        (b'{"prompt":[' + b'"a",' * 300_000 + b'"a"]}', "prompt", None),
        (b'{"prompt":[' + b"[]," * 300_000 + b"[]]}", "prompt", None),
        (b'{"prompt":[true,' + b" " * MB + b"1]}", "prompt", "invalid_value"),
        (b'{"prompt":"' + b"a" * MB + b'"}', "prompt", "context_length_exceeded"),
        (b'{"prompt":' + b"[" * MB, None, None),
        (b'{"prompt":"a","user":"' + b"a" * MB + b'"}', None, "parameters_too_large"),
        (b"[" + b"1," * 500_000 + b"1]", None, None),
    ],
)
def test_large_bodies_are_refused_as_small_ones_are(
    fleet: Fleet, body: bytes, param: str | None, code: str | None
) -> None:
    status, answer, _ = fleet.post("/v1/completions", body)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)


def test_a_large_body_that_fits_is_answered_like_a_small_one(fleet: Fleet) -> None:
    """White space makes it large; it is read in the tokenizer, the small one in the router."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    cases: list[tuple[str, dict[str, object]]] = [
        ("/v1/completions", {"prompt": ["Once", "Two"]}),
        ("/v1/completions", {"prompt": [1, 2, 3]}),
        ("/v1/completions", {"prompt": [[1, 2], [3]], "n": 2}),
        ("/v1/chat/completions", {"messages": [*messages, {"role": "user", "content": "Go"}]}),
    ]
    for path, content in cases:
        small = {**content, "max_tokens": 4, "seed": 1}
        data = json.dumps(small, separators=(",  ", ":  ")).encode()
        large = data.replace(b"[", b"[" + b" " * 400_000, 1)
        answers = [fleet.post(path, body) for body in (small, large)]
        assert [status for status, _, _ in answers] == [200, 200], (content, answers)
        first, second = ((a["choices"], a["usage"]["prompt_tokens"]) for _, a, _ in answers)
        assert first == second


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp"])
def test_a_head_that_does_not_come_is_not_waited_for(fleet: Fleet, sent: bytes) -> None:
    connection = connect(fleet)
    connection.sendall(sent)
    answer = everything(connection)
    assert not answer or status_and_code(answer) == (408, "head_timeout")
    assert bool(answer) == bool(sent)


def test_an_idle_connection_is_closed(fleet: Fleet) -> None:
    connection = ask(fleet, {"prompt": "Hi", "max_tokens": 2})
    assert everything(connection).startswith(b"HTTP/1.1 200")
    assert fleet.metric("mlxfleet_http_connections_closed_total", reason="idle") > 0


def test_idle_connections_make_room_and_busy_ones_do_not(fleet: Fleet) -> None:
    idle = [connect(fleet) for _ in range(30)]
    assert fleet.get("/health")[0] == 200
    busy = [ask(fleet, {**LONG, "stream": True}) for _ in range(20)]
    for connection in busy:
        assert connection.recv(64)
    refused = connect(fleet)
    assert status_and_code(everything(refused)) == (503, "too_many_connections")
    for connection in [*busy, *idle]:
        connection.close()
    wait_for(lambda: reachable(fleet), "the connections to be closed")
    assert fleet.metric("mlxfleet_http_connections_closed_total", reason="evicted") > 0
    assert fleet.metric("mlxfleet_http_connections_closed_total", reason="refused") > 0


def reachable(fleet: Fleet) -> bool:
    """Whether there is room for one more connection."""
    try:
        return fleet.get("/health")[0] == 200
    except OSError:
        return False


def test_a_client_that_does_not_read_is_cut_off(fleet: Fleet) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    connection.connect((host, int(port)))
    data = json.dumps({**LONG, "stream": True, "logprobs": 20, "n": 8}).encode()
    connection.sendall(head(len(data)) + data)
    wait_for(
        lambda: fleet.metric("mlxfleet_http_connections_closed_total", reason="stalled") > 0,
        "the connection to be closed",
    )
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 0, "its places to be free")
    connection.close()


def test_requests_that_are_sent_far_ahead_are_cut_off(fleet: Fleet) -> None:
    connection = ask(fleet, LONG)
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 1, "the request to run")
    send_quietly(connection, (head(40_000) + b" " * 40_000) * 8)
    assert everything(connection) == b""
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 0, "its place to be free")
    assert fleet.metric("mlxfleet_http_connections_closed_total", reason="ahead") == 1


# --- clients that leave, wholly or half -----------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_half_closed_client_gets_its_answer(fleet: Fleet, stream: bool, version: str) -> None:
    body = {"prompt": "Hi", "max_tokens": 100, "ignore_eos": True, "stream": stream}
    connection = ask(fleet, body, version=version)
    connection.shutdown(socket.SHUT_WR)
    answer = everything(connection)
    assert b" 200 OK\r\n" in answer
    assert (b"data: [DONE]" if stream else b'"completion_tokens":100') in answer
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 0, "its place to be free")


def test_a_half_closed_client_gets_all_answers_that_it_asked_for_ahead(fleet: Fleet) -> None:
    body = json.dumps({"prompt": "Hi", "max_tokens": 5, "ignore_eos": True}).encode()
    connection = connect(fleet)
    connection.sendall(3 * (head(len(body)) + body))
    connection.shutdown(socket.SHUT_WR)
    assert everything(connection).count(b'"completion_tokens":5') == 3


def test_half_a_request_of_a_half_closed_client_ends(fleet: Fleet) -> None:
    connection = connect(fleet)
    connection.sendall(head(100) + b'{"prompt"')
    connection.shutdown(socket.SHUT_WR)
    assert b" 200 " not in everything(connection)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_without_a_traceback(
    fleet: Fleet, stream: bool
) -> None:
    for chunks in range(8):
        connection = ask(fleet, {**LONG, "stream": stream, "n": 4})
        for _ in range(chunks if stream else 0):
            connection.recv(65536)
        if chunks % 2:
            # First only the end of what it sends is seen, and it is gone when it is written to.
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 0, "the places to be free", 10)
    assert "Traceback" not in fleet.output
