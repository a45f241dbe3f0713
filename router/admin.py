"""What operators ask the router: the state of the fleet, and to drain a node."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from mlxfleet.common.errors import NodeNotFoundError
from mlxfleet.common.messages import PRIORITIES
from mlxfleet.router.admission import Admission
from mlxfleet.router.dispatcher import Dispatcher
from mlxfleet.router.in_flight import InFlight
from mlxfleet.router.recent import Recent

MAX_REQUESTS_SHOWN = 200


class Admin:
    """Handlers of /fleet and /admin."""

    def __init__(
        self, dispatcher: Dispatcher, admission: Admission, in_flight: InFlight, recent: Recent
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._in_flight = in_flight
        self._recent = recent

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get("/fleet", self._fleet),
            web.get("/fleet/requests", self._requests),
            web.post("/admin/drain/{node}", self._drain),
            web.post("/admin/undrain/{node}", self._undrain),
        ]

    async def _fleet(self, http: web.Request) -> web.Response:
        nodes, loads = self._dispatcher.nodes, self._dispatcher.loads()
        weights = self._dispatcher.weights()
        return json(
            {
                "router": {
                    "sequences": self._admission.sequences,
                    "max_sequences": self._admission.max_sequences,
                    "recent": self._recent.fleet(),
                    "queued": {p: self._admission.depth(p) for p in PRIORITIES},
                },
                "nodes": [
                    self._node(name, loads[name], weights.get(name))
                    for name in sorted(nodes.status)
                ],
            }
        )

    async def _requests(self, http: web.Request) -> web.Response:
        return json(
            {
                "total": self._in_flight.total(),
                "requests": self._in_flight.oldest(MAX_REQUESTS_SHOWN),
            }
        )

    async def _drain(self, http: web.Request) -> web.Response:
        return self._set_draining(http, True)

    async def _undrain(self, http: web.Request) -> web.Response:
        return self._set_draining(http, False)

    def _set_draining(self, http: web.Request, draining: bool) -> web.Response:
        """Answers with the node's state; it has no more sequences when `sequences` is 0."""
        name = http.match_info["node"]
        if not self._dispatcher.nodes.drain(name, draining):
            known = ", ".join(sorted(self._dispatcher.nodes.status)) or "none"
            raise NodeNotFoundError(f"there is no node {name!r}; known nodes: {known}")
        weight = self._dispatcher.weights().get(name)
        return json(self._node(name, self._dispatcher.loads()[name], weight))

    def _node(self, name: str, sequences: int, weight: float | None) -> dict[str, Any]:
        """A node as /fleet shows it; a dead one has no weight."""
        nodes = self._dispatcher.nodes
        status = nodes.status[name]
        return {
            "name": name,
            "model": nodes.model_of(name),
            "host": status.info.host,
            "chip": status.info.chip,
            "memory_bytes": status.info.memory_bytes,
            "state": nodes.state(name),
            "loading": nodes.loading().get(name),
            "breaker": nodes.breaker_state(name),
            "breaker_open_s": round(nodes.breaker_open_s(name), 1),
            "fenced": nodes.fence_of(name),
            "sequences": sequences,
            "silent_s": round(nodes.silent_s(name), 3),
            "tokens_per_s": round(nodes.tokens_per_s(name), 1),
            "recent": self._recent.node(name),
            "running": status.running,
            "queued": status.queued,
            "max_running": status.max_running,
            "kv_used_bytes": status.kv_used_bytes,
            "kv_budget_bytes": status.model.kv_budget_bytes if status.model else 0,
            "prefilled_tokens": status.prefilled_tokens,
            "cached_tokens": status.cached_tokens,
            "preemptions": status.preemptions,
            "restarts": nodes.pool.peers[name].restarts,
            "worker_restarts": status.worker_restarts,
            "worker_memory_bytes": status.worker_memory_bytes,
            "weight": weight and round(weight, 3),
            "slowdown": round(status.slowdown, 3),
            "temperature_c": status.telemetry and status.telemetry.temperature_c,
            "telemetry": status.telemetry,
        }


def json(data: object) -> web.Response:
    """A JSON answer."""
    return web.Response(body=msgspec.json.encode(data), content_type="application/json")
