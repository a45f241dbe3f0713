"""A web page is no client: what it can send is refused, unless it is meant to use the server."""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page

from tests.integration.browser import chromium
from tests.integration.fleet import COMMAND, Fleet

EVIL = "http://evil.example"
APP = "app://obsidian.md"
PREFLIGHT = {"Origin": APP, "Access-Control-Request-Method": "POST"}
CHAT = "/v1/chat/completions"
PROMPT = {"prompt": "Hi", "max_tokens": 3}
JSON = {"Content-Type": "application/json"}
DRAIN = "/admin/drain/node-0"
KEY = "client-key"


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        found: str = json.loads(self.body)["error"]["code"]
        return found


def ask(
    fleet: Fleet, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    """A request with exactly these headers, and the Host of the URL if they name none."""
    connection = http.client.HTTPConnection(fleet.url.removeprefix("http://"), timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.msg, response.read())
    finally:
        connection.close()


def state(fleet: Fleet) -> str:
    """Of the only node."""
    found: str = json.loads(ask(fleet, "GET", "/fleet").body)["nodes"][0]["state"]
    return found


class Blank(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page_port() -> Iterator[int]:
    """Where a server of web pages is, which are of two origins: localhost and 127.0.0.1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, page_port: int) -> Iterator[Fleet]:
    """Without keys, but with names and origins that are meant."""
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--sim-step-ms", "1"]
    allowed = {
        "MLXFLEET_ALLOWED_HOSTS": "chat.lan",
        "MLXFLEET_ALLOWED_ORIGINS": f"{APP},http://127.0.0.1:{page_port}",
    }
    with Fleet(*arguments, environment=allowed) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def keyed(tiny_model: Path) -> Iterator[Fleet]:
    """With an API key."""
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--allowed-origins", APP]
    with Fleet(*arguments, environment={"MLXFLEET_API_KEY": KEY}) as fleet:
        yield fleet


def test_a_page_s_plain_posts_do_nothing(fleet: Fleet) -> None:
    refused = fleet.metric("mlxfleet_refused_web_requests_total", code="origin_not_allowed")
    received = fleet.metric("mlxfleet_requests_received_total")
    for path in (DRAIN, "/%61dmin/drain/node-0", CHAT, "/v1/completions"):
        for origin in (EVIL, "null", "http://localhost:3000"):
            headers = {"Origin": origin, "Content-Type": "text/plain"}
            answer = ask(fleet, "POST", path, PROMPT, headers)
            assert (answer.status, answer.code) == (403, "origin_not_allowed")
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert state(fleet) == "ready"
    assert fleet.metric("mlxfleet_requests_received_total") == received
    now = fleet.metric("mlxfleet_refused_web_requests_total", code="origin_not_allowed")
    assert now == refused + 12


def test_a_page_s_reads_are_refused(fleet: Fleet) -> None:
    for path in ("/fleet", "/fleet/requests", "/metrics", "/v1/models", "/health", "/ui"):
        assert ask(fleet, "GET", path, headers={"Origin": EVIL}).status == 403
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert ask(fleet, "GET", "/metrics", headers=embedded).status == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(fleet, "GET", "/ui", headers=link).status == 200


def test_nothing_is_done_by_a_get(fleet: Fleet) -> None:
    """An <img> of another site makes the browser send one, without an Origin."""
    for method in ("GET", "HEAD"):
        for path in (DRAIN, "/admin/undrain/node-0", CHAT, "/v1/completions"):
            headers = {"X-Mlxfleet-Admin": "1"}
            assert ask(fleet, method, path, headers=headers).status == 405
    assert state(fleet) == "ready"


def test_names_that_are_not_ours_are_not_served(fleet: Fleet) -> None:
    for host in ("evil.example", "localhost.evil.example:80", "user@localhost"):
        for method, path in (("GET", "/fleet"), ("GET", "/ui"), ("POST", "/v1/completions")):
            answer = ask(fleet, method, path, PROMPT, {"Host": host, **JSON})
            assert (answer.status, answer.code) == (421, "host_not_allowed")
    ours = socket.gethostname().lower()
    for host in ("localhost:1", "[::1]:8000", "10.0.0.7", "chat.lan", ours.upper(), f"{ours}."):
        assert ask(fleet, "POST", "/v1/completions", PROMPT, {"Host": host, **JSON}).status == 200


def test_a_whole_url_as_target_does_not_hide_its_host(fleet: Fleet) -> None:
    answer = ask(fleet, "GET", "http://evil.example/fleet", headers={"Host": "localhost"})
    assert answer.status == 421


def test_a_body_that_is_not_json_is_told_the_command(fleet: Fleet) -> None:
    for path in (CHAT, "/v1/completions"):
        answer = ask(fleet, "POST", path, PROMPT, {"Content-Type": "text/plain"})
        assert (answer.status, answer.code) == (415, "json_required")
        message = json.loads(answer.body)["error"]["message"]
        command = shlex.split("curl " + message.partition("curl ")[2])
        run = subprocess.run([*command, "-sS"], check=True, capture_output=True, timeout=60)
        assert json.loads(run.stdout)["choices"]


def test_draining_wants_its_header_and_our_commands_send_it(fleet: Fleet) -> None:
    answer = ask(fleet, "POST", DRAIN)
    assert (answer.status, answer.code) == (403, "admin_header_required")
    assert state(fleet) == "ready"
    for command, expected in (("drain", "draining"), ("undrain", "ready")):
        subprocess.run([COMMAND, command, "node-0", "--url", fleet.url], check=True, timeout=60)
        assert state(fleet) == expected


def test_the_live_page_s_own_requests_are_served(fleet: Fleet) -> None:
    headers = {"Origin": fleet.url, "Sec-Fetch-Site": "same-origin", **JSON}
    assert ask(fleet, "POST", "/v1/completions", PROMPT, headers).status == 200


def test_allowed_pages_are_told_what_they_may_send(keyed: Fleet) -> None:
    wanted = "authorization, content-type, x-stainless-lang"
    asks = {
        **PREFLIGHT,
        "Access-Control-Request-Headers": wanted,
        "Access-Control-Request-Private-Network": "true",
    }
    answer = ask(keyed, "OPTIONS", CHAT, headers=asks)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert answer.headers["Access-Control-Allow-Headers"] == wanted
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Origin" in answer.headers["Vary"]
    refused = ask(keyed, "OPTIONS", CHAT, headers={**asks, "Origin": EVIL})
    assert refused.status == 403
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_allowed_pages_can_read_errors(keyed: Fleet) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    cases = [
        (401, "POST", CHAT, {}, JSON),
        (400, "POST", CHAT, {}, JSON | key),
        (404, "GET", "/v1/nothing", None, key),
        (405, "GET", CHAT, None, key),
        (415, "POST", CHAT, {}, key | {"Content-Type": "text/plain"}),
        (413, "POST", CHAT, b" " * 17_000_000, JSON | key),
    ]
    for status, method, path, body, headers in cases:
        answer = ask(keyed, method, path, body, {**headers, "Origin": APP})
        assert answer.status == status
        assert json.loads(answer.body)["error"]["message"]
        assert answer.headers["Access-Control-Allow-Origin"] == APP
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]


def test_with_keys_any_name_is_served_and_the_key_is_proof_enough(keyed: Fleet) -> None:
    headers = {"Host": "llm.example", "Authorization": f"Bearer {KEY}"}
    assert ask(keyed, "GET", "/fleet", headers=headers).status == 200
    assert ask(keyed, "POST", "/admin/undrain/node-0", headers=headers).status == 200
    assert ask(keyed, "POST", DRAIN, headers={"X-Mlxfleet-Admin": "1"}).status == 401


SENDS = """async ([url, type, headers, mode]) => {
  const body = JSON.stringify({ prompt: "Hi", max_tokens: 3, stream: true });
  const sent = { method: "POST", mode, body, headers: { "Content-Type": type, ...headers } };
  try {
    const response = await fetch(url, sent);
    return [response.type, response.status, await response.text()];
  } catch (error) {
    return ["failed", 0, String(error)];
  }
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as browser:
        opened = browser.new_page()
        yield opened
        opened.close()


def test_a_browser_lets_a_foreign_page_do_nothing(fleet: Fleet, page: Page, page_port: int) -> None:
    page.goto(f"http://localhost:{page_port}/")
    received = fleet.metric("mlxfleet_requests_received_total")
    admin = {"X-Mlxfleet-Admin": "1"}
    assert page.evaluate(SENDS, [fleet.url + DRAIN, "text/plain", {}, "no-cors"])[0] == "opaque"
    for path, type, headers in (
        ("/v1/completions", "text/plain", {}),
        ("/v1/completions", "application/json", {}),
        (DRAIN, "text/plain", admin),
    ):
        sent = [fleet.url + path, type, headers, "cors"]
        assert page.evaluate(SENDS, sent)[0] == "failed"
    with page.expect_navigation():
        page.set_content(f"<form method=post action={fleet.url}{DRAIN}><button>Go</button></form>")
        page.click("button")
    assert state(fleet) == "ready"
    assert fleet.metric("mlxfleet_requests_received_total") == received


def test_a_browser_lets_an_allowed_page_stream(fleet: Fleet, page: Page, page_port: int) -> None:
    page.goto(f"http://127.0.0.1:{page_port}/")
    headers = {"Authorization": "Bearer none", "X-Stainless-Lang": "js"}
    sent = [f"{fleet.url}/v1/completions", "application/json", headers, "cors"]
    kind, status, text = page.evaluate(SENDS, sent)
    assert (kind, status) == ("cors", 200)
    assert text.endswith("data: [DONE]\n\n")
    refused = page.evaluate(SENDS, [sent[0], "text/plain", headers, "cors"])
    assert refused[:2] == ["cors", 415]
