"""Requests that wait in the router: their order, their limits, and how operators see them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import Fleet, wait_for

LONG = {"prompt": "Hi", "max_tokens": 8000, "ignore_eos": True, "stream": True}
ADMIN_KEY = "operator"
WAIT_S = 3.0


@pytest.fixture(scope="module")
def narrow_fleet(tiny_model: Path) -> Iterator[Fleet]:
    """A node with one row and one place to wait."""
    limits = ["--max-running", "1", "--max-queue", "1", "--queue-wait-s", str(WAIT_S)]
    environment = {"MLXFLEET_ADMIN_KEY": ADMIN_KEY}
    with Fleet("--model", str(tiny_model), *limits, environment=environment) as fleet:
        yield fleet


@contextmanager
def all_places_taken(fleet: Fleet) -> Iterator[None]:
    """While it lasts, whatever comes has to wait in the router."""
    client = fleet.client()
    body = {k: v for k, v in LONG.items() if k != "ignore_eos"}
    with ThreadPoolExecutor(2) as pool:
        streams = []

        def hold() -> None:
            stream = client.completions.create(
                model="tiny", extra_body={"ignore_eos": True}, **body
            )
            streams.append(stream)

        first = pool.submit(hold)
        first.result()
        # A report may still be of when the first one waited.
        wait_for(lambda: places(fleet) == (1, 0), "the row to be taken")
        waiting = pool.submit(hold)
        wait_for(lambda: places(fleet) == (1, 1), "both places to be taken")
        try:
            yield
        finally:
            streams[0].close()
            waiting.result()
            streams[1].close()
    wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") == 0, "an idle router")


def admin(
    fleet: Fleet, path: str, method: str = "GET", key: str = ADMIN_KEY
) -> tuple[int, dict[str, Any]]:
    """Status and answer of an operator's request."""
    request = urllib.request.Request(
        fleet.url + path, method=method, headers={"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def node(fleet: Fleet) -> dict[str, Any]:
    """The only node, as /fleet shows it."""
    found: list[dict[str, Any]] = admin(fleet, "/fleet")[1]["nodes"]
    return found[0]


def places(fleet: Fleet) -> tuple[int, int]:
    """How many sequences run and wait on the node, as it reported last."""
    reported = node(fleet)
    return reported["running"], reported["queued"]


def queued(fleet: Fleet) -> dict[str, int]:
    """How many sequences wait in the router, by priority. Asked for at /fleet, which is faster than
    metrics: nobody waits for long here."""
    found: dict[str, int] = admin(fleet, "/fleet")[1]["router"]["queued"]
    return found


def test_waiting_for_too_long_is_answered_429(narrow_fleet: Fleet) -> None:
    with all_places_taken(narrow_fleet):
        status, body, headers = narrow_fleet.post("/v1/completions", {"prompt": "Hi"})
        assert status == 429
        assert body["error"]["type"] == "rate_limit_error"
        assert int(headers["Retry-After"]) >= 1


def test_interactive_requests_start_before_batch_ones(narrow_fleet: Fleet) -> None:
    ended: list[str] = []

    def ask(priority: str) -> int:
        # One row runs at a time. The second has to take longer than a thread needs to wake up.
        body = {"prompt": "Hi", "max_tokens": 200, "ignore_eos": True, "priority": priority}
        status, _, _ = narrow_fleet.post("/v1/completions", body)
        ended.append(priority)
        return status

    with ThreadPoolExecutor(2) as pool:
        with all_places_taken(narrow_fleet):
            running = [pool.submit(ask, "batch")]
            wait_for(lambda: queued(narrow_fleet)["batch"] == 1, "the batch one")
            running.append(pool.submit(ask, "interactive"))
            wait_for(lambda: queued(narrow_fleet)["interactive"] == 1, "the other")
        assert [future.result() for future in running] == [200, 200]
    assert ended == ["interactive", "batch"]


@pytest.mark.parametrize("queued", [True, False])
def test_a_time_limit_ends_a_request(narrow_fleet: Fleet, queued: bool) -> None:
    body = {"prompt": "Hi", "max_tokens": 8000, "ignore_eos": True}
    limit = {"X-Request-Timeout": "0.5"}
    if queued:
        with all_places_taken(narrow_fleet):
            status, answer, _ = narrow_fleet.post("/v1/completions", body, limit)
    else:
        status, answer, _ = narrow_fleet.post("/v1/completions", body, limit)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    wait_for(lambda: narrow_fleet.metric("mlxfleet_sequences_in_flight") == 0, "an idle router")


@pytest.mark.parametrize("limit", ["soon", "-1", "0", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(narrow_fleet: Fleet, limit: str) -> None:
    headers = {"X-Request-Timeout": limit}
    status, answer, _ = narrow_fleet.post("/v1/completions", {"prompt": "Hi"}, headers)
    assert (status, answer["error"]["param"]) == (400, "X-Request-Timeout")


def test_a_priority_that_is_none_is_refused(narrow_fleet: Fleet) -> None:
    body = {"prompt": "Hi", "priority": "urgent"}
    status, answer, _ = narrow_fleet.post("/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "priority")


def test_operators_need_the_admin_key(narrow_fleet: Fleet) -> None:
    assert admin(narrow_fleet, "/fleet", key="wrong")[0] == 401
    assert admin(narrow_fleet, "/admin/drain/node-0", "POST", key="wrong")[0] == 401
    assert narrow_fleet.get("/v1/models")[0] == 200


def test_a_drained_node_gets_nothing_until_it_is_undrained(narrow_fleet: Fleet) -> None:
    assert admin(narrow_fleet, "/admin/drain/nobody", "POST")[0] == 404
    status, shown = admin(narrow_fleet, "/admin/drain/node-0", "POST")
    assert (status, shown["state"]) == (200, "draining")
    assert narrow_fleet.get("/ready")[0] == 503
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "Hi", "max_tokens": 1}
        running = pool.submit(narrow_fleet.post, "/v1/completions", body)
        wait_for(lambda: narrow_fleet.metric("mlxfleet_sequences_in_flight") == 1, "a request")
        assert admin(narrow_fleet, "/admin/undrain/node-0", "POST")[1]["state"] == "ready"
        assert running.result()[0] == 200
    assert narrow_fleet.get("/ready")[0] == 200
