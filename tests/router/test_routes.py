"""What the paths of the HTTP server have in common."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from mlxfleet.common.config import Keys, RouterOptions
from mlxfleet.router.admin import Admin
from mlxfleet.router.examples import BODIES
from mlxfleet.router.http import Api
from mlxfleet.router.malformed import no_route
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, parse
from mlxfleet.router.web_gate import WebGate
from mlxfleet.router.web_guard import WebGuard


@pytest.fixture
def posts() -> set[str]:
    """Paths that can be POSTed to. Anything else that is not a GET has no place here: what changes
    something is a POST below /v1 or /admin, where the guard looks for it."""
    gate = WebGate(WebGuard(Keys(), RouterOptions(), ()), Metrics().refused_web)
    parts: Any = dict.fromkeys(
        (
            "front",
            "admission",
            "metrics",
            "in_flight",
            "can_generate",
            "metrics_of_nodes",
            "tracer",
            "loading",
            "ping_s",
            "bodies",
            "connections",
        ),
        MagicMock(),
    )
    admin = Admin(MagicMock(), MagicMock(), MagicMock(), MagicMock())
    app = Api(keys=Keys(), admin=admin, web_gate=gate, **parts).application()
    found = [route for route in app.router.routes() if route.handler is not no_route]
    assert {route.method for route in found} == {"GET", "HEAD", "POST"}
    return {
        route.resource.canonical
        for route in found
        if route.resource is not None and route.method == "POST"
    }


def test_whatever_does_something_is_below_v1_or_admin(posts: set[str]) -> None:
    assert all(path.startswith(("/v1/", "/admin/")) for path in posts)


def test_every_path_for_requests_has_an_example(posts: set[str]) -> None:
    assert {path for path in posts if path.startswith("/v1/")} == set(BODIES)
    assert parse(ChatRequest, BODIES["/v1/chat/completions"].encode()).messages
    assert parse(CompletionRequest, BODIES["/v1/completions"].encode()).prompt
