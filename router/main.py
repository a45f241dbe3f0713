"""The router process: HTTP in front, tokenizers, nodes and detokenizers behind."""

from __future__ import annotations

import asyncio
import contextlib

import zmq
from aiohttp import web

from mlxfleet.common.config import RouterOptions, RouterProcess
from mlxfleet.common.curve import Gatekeeper
from mlxfleet.common.errors import ConfigError, listen_error
from mlxfleet.common.liveness import new_incarnation
from mlxfleet.common.malloc import return_large_blocks
from mlxfleet.common.process import Service, run_service
from mlxfleet.common.tracing import make_tracer
from mlxfleet.router.admin import Admin
from mlxfleet.router.admission import Admission
from mlxfleet.router.bodies import Bodies
from mlxfleet.router.body_budget import BodyBudget
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.connections import Connections
from mlxfleet.router.dispatcher import Dispatcher
from mlxfleet.router.fleet_metrics import FleetCollector
from mlxfleet.router.generation import Front
from mlxfleet.router.http import Api
from mlxfleet.router.in_flight import InFlight
from mlxfleet.router.malformed import server_log
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.own_names import OwnNames
from mlxfleet.router.recent import Recent
from mlxfleet.router.routing import Routing
from mlxfleet.router.routing_metrics import RoutingCollector
from mlxfleet.router.scrape_targets import scrape_targets
from mlxfleet.router.tokenizers import Tokenizers
from mlxfleet.router.web_gate import WebGate
from mlxfleet.router.web_guard import WebGuard
from mlxfleet.router.weight_metrics import WeightCollector

CUT_OFF_S = 0.1
READ_BUFFER_BYTES = 64 * 1024
BACKLOG = 128
MB = 1_000_000


class RouterService(Service):
    """Wires the HTTP API to the pools behind it."""

    def __init__(self, told: RouterProcess) -> None:
        super().__init__()
        self._told = told
        self._catalog = Catalog(told.models)
        self._gatekeeper: Gatekeeper | None = None

    async def startup(self) -> None:
        """Bind the links, then the HTTP port."""
        return_large_blocks()
        told, options = self._told, self._told.options
        session = new_incarnation()
        self._tracer = make_tracer(told.observe, "router", told.name)
        in_flight, recent, own_names = InFlight(), Recent(), OwnNames()
        own_names.renew()
        self._context = zmq.Context()
        metrics = Metrics()
        metrics.start_at_zero(self._catalog.names)
        self._http_log = server_log(metrics.malformed_requests.inc)
        bodies = make_bodies(told, metrics)
        self._connections = make_connections(options, metrics)
        metrics.watch_clients(self._connections, bodies.budget)
        if told.security is not None:
            self._gatekeeper = Gatekeeper(
                self._context, told.security, metrics.refused_nodes.labels("key").inc
            )
        self._tokenizers = Tokenizers(
            self._context, told.tokenizer_address, session, wait_s=options.node_wait_s
        )
        routing = Routing(
            options.routing,
            max_index_blocks=options.cache_index_blocks,
            node_weights=options.node_weights,
        )
        metrics.registry.register(RoutingCollector(routing))
        self._dispatcher = Dispatcher(
            self._context,
            node_address=told.node_address,
            detokenizer_address=told.detokenizer_address,
            session=session,
            node_wait_s=options.node_wait_s,
            metrics=metrics,
            on_nodes_changed=lambda: admission.pump(),
            models=told.models,
            security=told.security,
            routing=routing,
        )
        admission = Admission(
            self._catalog.names,
            self._dispatcher.nodes.capacity,
            max_sequences=options.max_requests,
            max_per_client=options.max_requests_per_key,
            max_wait_s=options.queue_wait_s,
            node_wait_s=options.node_wait_s,
            loads=self._dispatcher.patience.loads,
        )
        metrics.watch_admission(admission)
        metrics.watch_patience(self._dispatcher.patience)
        metrics.watch_ready(self._can_generate)
        front = {
            "tokenizer": self._tokenizers.pool,
            "detokenizer": self._dispatcher.detokenizers.pool,
        }
        metrics.registry.register(FleetCollector(front, self._dispatcher))
        metrics.registry.register(WeightCollector(self._dispatcher))
        self._api = Api(
            keys=told.keys,
            front=Front(
                self._tokenizers, self._dispatcher, self._catalog, options.default_max_tokens
            ),
            admission=admission,
            admin=Admin(self._dispatcher, admission, in_flight, recent),
            metrics=metrics,
            in_flight=in_flight,
            can_generate=self._can_generate,
            loading=self._dispatcher.nodes.loading,
            ping_s=options.stream_ping_s,
            metrics_of_nodes=lambda: scrape_targets(self._dispatcher.nodes),
            tracer=self._tracer,
            web_gate=WebGate(WebGuard(told.keys, options, own_names), metrics.refused_web),
            bodies=bodies,
            connections=self._connections,
        )
        self._watching = asyncio.create_task(self._dispatcher.watch_nodes())
        self._following = asyncio.create_task(recent.follow(metrics, self._dispatcher.nodes))
        await self._listen(options.host, options.port)

    async def drain(self) -> None:
        """Refuse new requests and let running ones finish, up to the limit."""
        self._api.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._api.idle.wait(), self._told.options.drain_timeout_s)

    async def shutdown(self) -> None:
        """Close the HTTP server, then the links, and send the last spans."""
        self._server.close()
        await self._runner.cleanup()
        self._watching.cancel()
        self._following.cancel()
        self._dispatcher.nodes.close()
        for pool in (self._tokenizers.pool, self._dispatcher.detokenizers.pool):
            pool.channel.close()
        if self._gatekeeper is not None:
            self._gatekeeper.close()
        self._context.term()
        self._tracer.close()

    async def _listen(self, host: str, port: int) -> None:
        self._runner = web.AppRunner(
            self._api.application(),
            handler_cancellation=True,
            access_log=None,
            logger=self._http_log,
            # What is left after the drain is cut off.
            shutdown_timeout=CUT_OFF_S,
            # Bodies are refused by what they say of their encoding; none is ever decompressed.
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._connections.serve = self._runner.server
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connections, host, port, backlog=BACKLOG
            )
        except OSError as error:
            raise listen_error(host, port, error) from error

    def _can_generate(self) -> bool:
        """Whether a request for some model can be answered now."""
        return any(
            self._dispatcher.nodes.ready(model)
            and self._tokenizers.alive(model)
            and self._dispatcher.detokenizers.alive(model)
            for model in self._catalog.names
        )


def make_bodies(told: RouterProcess, metrics: Metrics) -> Bodies:
    """What reads request bodies; ConfigError if the largest would never fit."""
    options = told.options
    largest, budget = options.max_body_mb * MB, BodyBudget(options.max_bodies_mb * MB)
    if budget.pool_for("", largest) is None:
        raise ConfigError(
            f"--max-bodies-mb {options.max_bodies_mb} has no room for a body of --max-body-mb"
            f" {options.max_body_mb}; twice as much has"
        )
    return Bodies(
        budget,
        max_bytes=largest,
        grace_s=options.body_timeout_s,
        by_key=bool(told.keys.api),
        on_refused=lambda why: metrics.bodies_refused.labels(why).inc(),
    )


def make_connections(options: RouterOptions, metrics: Metrics) -> Connections:
    """The connections of the HTTP port."""
    return Connections(
        limit=options.max_connections,
        head_s=options.header_timeout_s,
        idle_s=options.keep_alive_s,
        stall_s=options.client_stall_s,
        on_closed=lambda why: metrics.connections_closed.labels(why).inc(),
    )


def main() -> None:
    """Run the router to its end."""
    run_service(RouterProcess, RouterService)
