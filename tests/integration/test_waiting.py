"""Requests that come before somebody can answer them: they wait, and streams are kept awake."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import Fleet, wait_for
from tests.integration.joined import Front, Node

LOAD_S = 5.0
# Loading takes longer than a request would wait for a node that does not load.
NODE_WAIT_S = 2.0
PING_S = 0.3
PING = b": ping\n"
BODY = {"prompt": "Once", "max_tokens": 5, "stream": True}


class EarlyFleet(Fleet):
    """`mlxfleet launch` on a port that is known before it is ready."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.command = ("launch", "--port", str(port))
        super().__init__(*arguments)
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> EarlyFleet:
        wait_for(lambda: alive(self), "the port")
        return self

    @property
    def ready(self) -> bool:
        """Whether it has said that it can serve."""
        return self._ready_url() is not None


def alive(fleet: Fleet) -> bool:
    """Whether the router takes connections."""
    try:
        return fleet.get("/health")[0] == 200
    except OSError:
        return False


def read_stream(fleet: Fleet, body: dict[str, Any]) -> tuple[int, bytes]:
    """Status and all bytes of a stream, comments too."""
    address = urllib.parse.urlsplit(fleet.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def completion_tokens(fleet: Fleet, max_tokens: int = 5) -> int:
    """Tokens of an answer that has to come."""
    status, answer, _ = fleet.post("/v1/completions", {**BODY, "stream": False})
    assert status == 200, answer
    return int(answer["usage"]["completion_tokens"])


@pytest.fixture(scope="module")
def early(tiny_model: Path) -> Iterator[EarlyFleet]:
    waits = ["--node-wait-s", str(NODE_WAIT_S), "--stream-ping-s", str(PING_S)]
    sim = ["--engine", "sim", "--sim-load-s", str(LOAD_S), "--sim-step-ms", "5"]
    with EarlyFleet("--model", str(tiny_model), *sim, *waits) as fleet:
        yield fleet


def test_requests_from_before_the_model_is_loaded_are_answered(early: EarlyFleet) -> None:
    status, body = early.get("/ready")
    assert (status, early.ready) == (503, False)
    assert json.loads(body)["ready"] is False
    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(completion_tokens, early)
        stream = pool.submit(read_stream, early, BODY)
        hasty = {"X-Request-Timeout": "0.2"}
        late = pool.submit(early.post, "/v1/completions", {**BODY, "stream": False}, hasty)
        wait_for(lambda: " of " in (loading_words(early) or ""), "progress")
        shown = json.loads(early.get("/fleet")[1])["nodes"][0]
        assert shown["state"] == "loading"
        assert shown["loading"]["stage"] == "reading"
        assert 0 <= shown["loading"]["loaded_bytes"] <= shown["loading"]["total_bytes"]
        assert late.result()[0] == 504
        assert not whole.done()
        assert early.metric("mlxfleet_requests_without_node") == 2
        assert whole.result() == 5
        status, text = stream.result()
    assert status == 200
    assert text.startswith(PING)
    assert text.count(PING) >= 3
    assert text.endswith(b"data: [DONE]\n\n")
    assert early.metric("mlxfleet_stream_pings_total") >= 3
    wait_for(lambda: early.ready, "the ready line")
    assert early.get("/ready") == (200, '{"ready":true}')
    assert "loading" in early.output


def loading_words(fleet: Fleet) -> str | None:
    """How far the node is, as /ready says."""
    found: dict[str, str] = json.loads(fleet.get("/ready")[1]).get("loading", {})
    return found.get("node-0")


def test_requests_wait_for_a_worker_that_loads_again(early: EarlyFleet) -> None:
    wait_for(lambda: early.get("/ready")[0] == 200, "ready")
    early.kill("worker-0")
    wait_for(lambda: early.get("/ready")[0] == 503, "the death to be noticed")
    assert completion_tokens(early) == 5
    assert early.metric("mlxfleet_requests_answered_total", outcome="backpressure") == 1


def test_requests_wait_for_what_a_new_router_does_not_know_yet(early: EarlyFleet) -> None:
    wait_for(lambda: early.get("/ready")[0] == 200, "ready")
    early.kill("router")
    wait_for(lambda: alive(early), "the new router")
    assert completion_tokens(early) == 5


def test_without_a_node_the_wait_ends(tiny_model: Path) -> None:
    waits = ["--node-wait-s", "0.5", "--stream-ping-s", "0.2"]
    with Front("--model", str(tiny_model), *waits) as front:
        status, answer, headers = front.post("/v1/completions", {**BODY, "stream": False})
        assert (status, headers["Retry-After"]) == (503, "5")
        assert answer["error"]["message"] == "no node is there"
        status, text = read_stream(front, BODY)
        assert status == 200
        assert text.startswith(PING)
        (event,) = [line for line in text.splitlines() if line.startswith(b"data: ")]
        assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "no node is there"


# --- nodes of different sizes --------------------------------------------------------------------

SMALL, BIG = 200, 600
LONG = {"prompt": [5] * 300, "max_tokens": 5}
SHORT = {"prompt": [5] * 100, "max_tokens": 5}


class SimNode(Node):
    """`mlxfleet node` on the simulated engine."""

    command = ("node", "--engine", "sim", "--sim-step-ms", "5")


def test_limits_are_those_of_the_nodes_that_live(tiny_model: Path) -> None:
    model = ["--model", str(tiny_model)]

    def node(name: str, context: int) -> SimNode:
        size = ["--max-context", str(context)]
        return SimNode(*model, *size, "--router", front.node_address, "--name", name)

    def ask(body: dict[str, Any], **headers: str) -> tuple[int, str]:
        status, answer, _ = front.post("/v1/completions", body, headers)
        return status, answer.get("error", {}).get("message", "")

    options = [*model, "--node-wait-s", "60", "--routing", "round_robin"]
    with Front(*options) as front, ThreadPoolExecutor(1) as pool, node("small", SMALL):
        wait_for(lambda: front.ready_nodes() == {"small"}, "the small node")
        status, why = ask(LONG)
        assert status == 400
        assert f"only {SMALL}" in why
        with node("big", BIG) as big:
            wait_for(lambda: front.ready_nodes() == {"small", "big"}, "both nodes")
            assert [ask(LONG) for _ in range(6)] == [(200, "")] * 6
            assert [ask(SHORT) for _ in range(6)] == [(200, "")] * 6
            assert all(
                front.metric("mlxfleet_prefilled_tokens_total", node=name)
                for name in ("small", "big")
            )
            status, why = ask({"prompt": [5] * BIG, "max_tokens": 5})
            assert status == 400
            assert f"only {BIG}" in why
            big.kill_all()
        wait_for(lambda: front.ready_nodes() == {"small"}, "the loss")
        assert ask(SHORT) == (200, "")
        assert ask(LONG, **{"X-Request-Timeout": "0.5"})[0] == 504, "it waits for the big one"
        waiting: Future[tuple[int, str]] = pool.submit(ask, LONG)
        wait_for(lambda: front.metric("mlxfleet_requests_without_node") == 1, "the wait")
        with node("big", BIG):
            assert waiting.result(timeout=60) == (200, "")
