"""The HTTP API: routes, authentication, errors, and the two ways to answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web

from mlxfleet.common.config import Keys
from mlxfleet.common.errors import (
    DeadlineError,
    GenerationError,
    InvalidRequestError,
    MethodNotAllowedError,
    RequestError,
    UnavailableError,
)
from mlxfleet.common.load_progress import describe
from mlxfleet.common.messages import LoadProgress, TokenTextLogprobs
from mlxfleet.common.tracing import Tracer
from mlxfleet.router.admin import Admin
from mlxfleet.router.admission import Admission, Ticket
from mlxfleet.router.auth import Authenticator, client_name
from mlxfleet.router.bodies import Bodies
from mlxfleet.router.chunks import DONE, Chunks, event
from mlxfleet.router.connections import CLIENT_CLOSED_REQUEST, Connections
from mlxfleet.router.event_stream import EventStream
from mlxfleet.router.generation import Front, Generation
from mlxfleet.router.in_flight import InFlight
from mlxfleet.router.limits import Limits
from mlxfleet.router.malformed import with_expect
from mlxfleet.router.metrics import Metrics, RequestRecord
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, Parameters
from mlxfleet.router.patience import within
from mlxfleet.router.request_trace import traced
from mlxfleet.router.scrape_targets import ScrapeTarget
from mlxfleet.router.shapes import ChatShape, CompletionShape, Response, Shape, Usage, encode
from mlxfleet.router.ui.page import Page
from mlxfleet.router.web_gate import WebGate

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TIMEOUT_HEADER = "X-Request-Timeout"
DRAINING_RETRY_AFTER_S = 10
SESSION_HEADER = "X-Session-Id"


class Api:
    """Handlers of all routes. `draining` makes it refuse new work; `idle` says that none runs."""

    def __init__(
        self,
        *,
        keys: Keys,
        front: Front,
        admission: Admission,
        admin: Admin,
        metrics: Metrics,
        in_flight: InFlight,
        can_generate: Callable[[], bool],
        loading: Callable[[], dict[str, LoadProgress]],
        metrics_of_nodes: Callable[[], list[ScrapeTarget]],
        ping_s: float,
        tracer: Tracer,
        web_gate: WebGate,
        bodies: Bodies,
        connections: Connections,
    ) -> None:
        self._bodies = bodies
        self._connections = connections
        self._authenticator = Authenticator(keys)
        self._front = front
        self._admission = admission
        self._admin = admin
        self._metrics = metrics
        self._in_flight = in_flight
        self._can_generate = can_generate
        self._loading = loading
        self._metrics_of_nodes = metrics_of_nodes
        self._ping_s = ping_s
        self._tracer = tracer
        self._web_gate = web_gate
        self._created = int(time.time())
        self.draining = False
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            middlewares=[
                self._connections.watch,
                self._answer_errors,
                self._web_gate.check,
                self._authenticate,
            ]
        )
        app.on_response_prepare.append(self._connections.on_prepare)
        app.on_response_prepare.append(self._web_gate.sign)
        routes = [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completion),
            web.get("/v1/models", self._models),
            web.get("/v1/models/{model:.+}", self._one_model),
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.get("/metrics", self._show_metrics),
            web.get("/metrics/targets", self._metrics_targets),
            *self._admin.routes(),
            *Page().routes(),
        ]
        app.add_routes(with_expect(routes))
        return app

    # --- middlewares --------------------------------------------------------------------------

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error in OpenAI's shape."""
        try:
            return await handler(request)
        except RequestError as error:
            return error_response(error)
        except ConnectionError:
            # The client has left: nobody reads this, but aiohttp would log the error as ours.
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        except web.HTTPRequestEntityTooLarge as error:
            return error_response(
                InvalidRequestError("the request body is too large", code="body_too_large"),
                error.status,
            )
        except web.HTTPMethodNotAllowed as error:
            return method_not_allowed(request, error)
        except web.HTTPException as error:
            text = f"{request.method} {request.path}: {error.reason}"
            return error_response(InvalidRequestError(text, code="not_found"), error.status)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._authenticator.check(request)
        return await handler(request)

    # --- routes -------------------------------------------------------------------------------

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(
            http, "chat", ChatRequest, self._front.chat, lambda _: ChatShape()
        )

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(
            http,
            "completions",
            CompletionRequest,
            self._front.completion,
            lambda request: CompletionShape(request.logprobs),
        )

    async def _models(self, http: web.Request) -> web.Response:
        data = [self._describe_model(name) for name in self._front.catalog.names]
        return json_response({"object": "list", "data": data})

    async def _one_model(self, http: web.Request) -> web.Response:
        name = self._front.catalog.find(http.match_info["model"])
        return json_response(self._describe_model(name))

    async def _health(self, http: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _ready(self, http: web.Request) -> web.Response:
        """200 if requests can be answered now, else 503 with how far nodes are that load."""
        if self._can_generate() and not self.draining:
            return json_response({"ready": True})
        loading = {node: describe(progress) for node, progress in self._loading().items()}
        return json_response({"ready": False, "loading": loading}, status=503)

    async def _show_metrics(self, http: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _metrics_targets(self, http: web.Request) -> web.Response:
        return json_response(self._metrics_of_nodes())

    # --- generation ---------------------------------------------------------------------------

    async def _generate(
        self,
        http: web.Request,
        endpoint: str,
        kind: Any,
        make: Callable[[Any, Limits, str], Awaitable[Generation]],
        make_shape: Callable[[Any], Shape],
    ) -> web.StreamResponse:
        """Answer a request for tokens, and record how it ended."""
        self._active += 1
        self.idle.clear()
        try:
            with (
                self._metrics.request(endpoint) as record,
                traced(self._tracer, http, endpoint, record) as trace,
                outcome_into(record),
                self._bodies.of(http) as body,
            ):
                if self.draining:
                    raise UnavailableError(
                        "the server is shutting down", retry_after_s=DRAINING_RETRY_AFTER_S
                    )
                data = await body.read()
                began = time.perf_counter()
                trace.stage("validate")
                deadline = deadline_of(http)
                async with within(deadline):
                    asked = await self._front.read(kind, data, client_name(http))
                del data
                request = asked.request
                record.model = model = self._front.catalog.find(request.model)
                trace.asks(request, model)
                ticket = Ticket(
                    client=asked.client,
                    model=model,
                    sequences=request.sequences,
                    priority=request.priority or "interactive",
                    deadline=deadline,
                )
                stages = self._metrics.stages
                stages.observe(model, "validate", time.perf_counter() - began)
                shown = self._in_flight.entry(ticket.priority)
                pings = self._metrics.stream_pings.inc
                stream = EventStream(http, self._ping_s if request.stream else 0, pings)
                with self._admission.room_for(ticket), shown as entry:
                    async with errors_as_events(stream, record), stream:
                        async with within(ticket.deadline):
                            known = await self._front.ready_for(model)
                            with stages.timed(model, "tokenize"):
                                generation = await make(asked, known, trace.stage("tokenize"))
                        asked.forget_prompt()
                        body.release()
                        trace.runs(generation)
                        session = http.headers.get(SESSION_HEADER) or request.user
                        generation.belongs_to(session, record.arrived, ticket)
                        generation.deadline = ticket.deadline
                        entry.sequences = generation.sequences
                        self._metrics.prompt_tokens.labels(model).inc(generation.prompt_tokens)
                        shape = make_shape(request)
                        began = time.perf_counter()
                        trace.stage("admission")
                        async with self._admission.turn(ticket) as turn:
                            generation.starts_in(turn)
                            trace.stage_over()
                            stages.observe(model, "admission", time.perf_counter() - began)
                            with generation.released_at_end(), ends_at(ticket.deadline, generation):
                                if request.stream:
                                    await self._stream(stream, request, generation, shape)
                                else:
                                    answer = await self._whole(generation, shape)
                        record.outcome = "ok"
                response = stream.response if request.stream else answer
                trace.status = response.status
                return response
        finally:
            self._active -= 1
            if self._active == 0:
                self.idle.set()

    async def _whole(self, generation: Generation, shape: Shape) -> web.Response:
        entry: Callable[[TokenTextLogprobs], Any] = shape.entry
        choices = await generation.collect(entry)
        return json_response(
            Response(
                id=shape.id_prefix + generation.rid,
                object=shape.whole_object,
                model=generation.model,
                choices=[shape.whole(index, choice) for index, choice in enumerate(choices)],
                usage=Usage.of(generation),
            )
        )

    async def _stream(
        self, stream: EventStream, request: Parameters, generation: Generation, shape: Shape
    ) -> None:
        """Server-sent events, from the first token to the end."""
        chunks = Chunks(generation, shape, request)
        # Events that come together are sent together: each write is a system call.
        events = b"".join(chunks.openings())
        async for index, delta in generation.deltas():
            events += chunks.chunk(index, delta)
            if not generation.over:
                await stream.send(events)
                events = b""
        if request.include_usage:
            events += chunks.usage()
        await stream.end(events + DONE)

    def _describe_model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "mlxfleet",
            "default_sampling": self._front.catalog.sampling_defaults(name),
        }


def deadline_of(http: web.Request) -> float | None:
    """When a request's client gives up, in the event loop's time; None is never.
    InvalidRequestError if its time limit is none."""
    if (text := http.headers.get(TIMEOUT_HEADER)) is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise InvalidRequestError(
            f"the header {TIMEOUT_HEADER} wants a positive number of seconds, not {text!r}",
            param=TIMEOUT_HEADER,
        )
    return asyncio.get_running_loop().time() + timeout_s


@contextlib.contextmanager
def outcome_into(record: RequestRecord) -> Iterator[None]:
    """Record how a request ends that is not answered as it should be."""
    try:
        yield
    except (asyncio.CancelledError, ConnectionError):
        record.outcome = "cancelled"
        raise
    except RequestError as error:
        record.outcome = outcome_of(error)
        raise
    except web.HTTPException:
        record.outcome = "client_error"
        raise


@contextlib.asynccontextmanager
async def errors_as_events(stream: EventStream, record: RequestRecord) -> AsyncIterator[None]:
    """Send an error as an event in a stream whose status is sent."""
    try:
        yield
    except RequestError as error:
        if not stream.opened:
            raise
        record.outcome = outcome_of(error)
        await stream.end(event(error.body()))


@contextlib.contextmanager
def ends_at(deadline: float | None, generation: Generation) -> Iterator[None]:
    """Fail a generation at a time of the event loop."""
    if deadline is None:
        yield
        return
    error = DeadlineError("the request did not end within its time limit")
    timer = asyncio.get_running_loop().call_at(deadline, generation.fail, error)
    try:
        yield
    finally:
        timer.cancel()


def json_response(data: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=encode(data), status=status, content_type="application/json")


def error_response(error: RequestError, status: int | None = None) -> web.Response:
    """An error as an HTTP answer."""
    response = json_response(error.body(), status or error.status)
    response.headers.update(error.headers)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def method_not_allowed(request: web.Request, error: web.HTTPMethodNotAllowed) -> web.Response:
    """The answer to a method that a path does not know, which names those that it does."""
    allowed = ", ".join(sorted(error.allowed_methods))
    text = f"{request.path} does not take {request.method}, only {allowed}"
    response = error_response(MethodNotAllowedError(text, code="method_not_allowed"))
    response.headers["Allow"] = allowed
    return response


def outcome_of(error: RequestError) -> str:
    """How a refusal is counted."""
    if isinstance(error, GenerationError):
        return "error"
    return "backpressure" if error.status in (429, 503, 504) else "client_error"
