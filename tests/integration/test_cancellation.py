"""A client that goes away frees what it held, whatever its request was doing."""

from __future__ import annotations

import json
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, wait_for

FREED_WITHIN_S = 0.2
LONG = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True}
TINY_KV_BYTES_PER_TOKEN = 512
SLOW_PREFILL = {"prompt": [1000] * 8000, "max_tokens": 100, "ignore_eos": True}


def send(fleet: Fleet, body: dict[str, object]) -> socket.socket:
    """Start a request and leave its connection open."""
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    head = f"POST /v1/completions HTTP/1.1\r\n{headers}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def busy(fleet: Fleet) -> tuple[float, float, float]:
    """Rows in the worker, requests in the queue, sequences in the router."""
    return (
        fleet.metric("mlxfleet_running_sequences", node="node-0"),
        fleet.metric("mlxfleet_queue_depth", node="node-0"),
        fleet.metric("mlxfleet_sequences_in_flight"),
    )


def assert_freed(fleet: Fleet) -> None:
    """Everything is idle soon. The node reports four times a second, so its gauges lag."""
    wait_for(lambda: busy(fleet) == (0, 0, 0), "the slot to be free", deadline_s=5)


@pytest.fixture(scope="module")
def narrow_fleet(tiny_model: Path):
    """One row at a time, so that a second request waits."""
    with Fleet("--model", str(tiny_model), "--max-running", "1", "--max-queue", "2") as fleet:
        yield fleet


@pytest.mark.parametrize("stream", [True, False])
def test_while_decoding(tiny_fleet: Fleet, stream: bool) -> None:
    connection = send(tiny_fleet, {**LONG, "stream": stream})
    wait_for(lambda: busy(tiny_fleet)[0] == 1, "a running row")
    connection.close()
    assert_freed(tiny_fleet)


@pytest.mark.parametrize("stream", [True, False])
def test_while_prefilling(tiny_fleet: Fleet, stream: bool) -> None:
    tokens = tiny_fleet.metric("mlxfleet_output_tokens_total")
    connection = send(tiny_fleet, {**SLOW_PREFILL, "stream": stream})
    wait_for(lambda: busy(tiny_fleet)[0] == 1, "a running row")
    connection.close()
    assert_freed(tiny_fleet)
    assert tiny_fleet.metric("mlxfleet_output_tokens_total") == tokens


@pytest.mark.parametrize("stream", [True, False])
def test_while_queued(narrow_fleet: Fleet, stream: bool) -> None:
    running = send(narrow_fleet, LONG)
    wait_for(lambda: busy(narrow_fleet)[0] == 1, "a running row")
    queued = send(narrow_fleet, {**LONG, "stream": stream})
    wait_for(lambda: busy(narrow_fleet)[1] == 1, "a queued request")
    queued.close()
    wait_for(lambda: busy(narrow_fleet) == (1, 0, 1), "the queue to be empty", deadline_s=5)
    running.close()
    assert_freed(narrow_fleet)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("held_by", [LONG, SLOW_PREFILL], ids=["decoding", "prefilling"])
def test_slot_is_usable_at_once(
    narrow_fleet: Fleet, held_by: dict[str, object], stream: bool
) -> None:
    """The next request gets the only slot as soon as the client before it is gone."""
    durations = []
    for _ in range(3):
        holder = send(narrow_fleet, {**held_by, "stream": stream})
        wait_for(lambda: busy(narrow_fleet)[0] == 1, "a running row")
        waiter = send(narrow_fleet, {"prompt": "Hi", "max_tokens": 1})
        wait_for(lambda: busy(narrow_fleet)[2] == 2, "a second request")
        began = time.monotonic()
        holder.close()
        assert waiter.recv(1000).startswith(b"HTTP/1.1 200")
        durations.append(time.monotonic() - began)
        waiter.close()
        assert_freed(narrow_fleet)
    assert sorted(durations)[1] < FREED_WITHIN_S


def test_router_limit_is_answered_429(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model), "--max-requests", "2") as fleet:
        held = [send(fleet, LONG) for _ in range(2)]
        wait_for(lambda: busy(fleet)[2] == 2, "two sequences")
        status, _, headers = fleet.post("/v1/completions", {"prompt": "Hi"})
        assert (status, headers["Retry-After"]) == (429, "1")
        status, body, _ = fleet.post("/v1/completions", {"prompt": "Hi", "n": 3})
        assert (status, body["error"]["param"]) == (400, "n")
        for connection in held:
            connection.close()


def test_more_than_fits_into_memory_takes_turns(tiny_model: Path) -> None:
    """Two requests whose worst cases do not fit together: one makes room, both are answered."""
    flags = ["--max-running", "2", "--max-chunk-tokens", "16", "--max-context", "4096"]
    with Fleet("--model", str(tiny_model), "--memory-gb", "0.0305", *flags) as fleet:
        budget = fleet.metric("mlxfleet_kv_limit_bytes", node="node-0")
        too_much = fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4000})
        assert too_much[0] == 400
        assert "MB of KV cache" in too_much[1]["error"]["message"]
        # Slots have room for a power of two of tokens. One that nearly fills the largest that fits
        # leaves no memory for another like it, however large the rest of the process is.
        slot_tokens = 2 ** int(math.log2(budget / TINY_KV_BYTES_PER_TOKEN))
        tokens = int(0.8 * slot_tokens)
        bodies = [
            {**LONG, "prompt": word, "max_tokens": tokens, "temperature": 0}
            for word in ("Hello", "Once upon")
        ]
        alone = [fleet.post("/v1/completions", body)[1]["choices"][0]["text"] for body in bodies]
        before = fleet.metric("mlxfleet_preemptions_total", node="node-0")
        with ThreadPoolExecutor() as pool:
            both = list(pool.map(lambda body: fleet.post("/v1/completions", body), bodies))
        assert [answer[0] for answer in both] == [200, 200]
        assert [answer[1]["choices"][0]["text"] for answer in both] == alone
        assert fleet.metric("mlxfleet_preemptions_total", node="node-0") > before
        assert fleet.metric("mlxfleet_kv_bytes", node="node-0", state="running") <= budget
