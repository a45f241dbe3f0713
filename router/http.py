"""The HTTP API: routes, authentication, errors, and the two ways to answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
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
from mlxfleet.common.tracing import Tracer
from mlxfleet.router.admin import Admin
from mlxfleet.router.admission import Admission, Ticket
from mlxfleet.router.auth import Authenticator, client_name
from mlxfleet.router.generation import Front, Generation
from mlxfleet.router.in_flight import InFlight
from mlxfleet.router.metrics import Metrics, RequestRecord
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, Parameters, parse
from mlxfleet.router.request_trace import traced
from mlxfleet.router.scrape_targets import ScrapeTarget
from mlxfleet.router.shapes import ChatShape, CompletionShape, Response, Usage
from mlxfleet.router.ui.page import Page
from mlxfleet.router.web_gate import WebGate

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Shape = ChatShape | CompletionShape

TIMEOUT_HEADER = "X-Request-Timeout"
DRAINING_RETRY_AFTER_S = 10
SESSION_HEADER = "X-Session-Id"
encode = msgspec.json.Encoder().encode


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
        metrics_of_nodes: Callable[[], list[ScrapeTarget]],
        tracer: Tracer,
        web_gate: WebGate,
    ) -> None:
        self._authenticator = Authenticator(keys)
        self._front = front
        self._admission = admission
        self._admin = admin
        self._metrics = metrics
        self._in_flight = in_flight
        self._can_generate = can_generate
        self._metrics_of_nodes = metrics_of_nodes
        self._tracer = tracer
        self._web_gate = web_gate
        self._created = int(time.time())
        self.draining = False
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def application(self, max_body_bytes: int) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            client_max_size=max_body_bytes,
            middlewares=[self._answer_errors, self._web_gate.check, self._authenticate],
        )
        app.on_response_prepare.append(self._web_gate.sign)
        app.add_routes(
            [
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
        )
        return app

    # --- middlewares --------------------------------------------------------------------------

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error in OpenAI's shape."""
        try:
            return await handler(request)
        except RequestError as error:
            return error_response(error)
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
        ready = self._can_generate() and not self.draining
        return json_response({"ready": ready}, status=200 if ready else 503)

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
        make: Callable[[Any, str], Awaitable[Generation]],
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
            ):
                if self.draining:
                    raise UnavailableError(
                        "the server is shutting down", retry_after_s=DRAINING_RETRY_AFTER_S
                    )
                body = await http.read()
                began = time.perf_counter()
                trace.stage("validate")
                request = parse(kind, body)
                record.model = model = self._front.catalog.find(request.model)
                trace.asks(request, model)
                ticket = make_ticket(http, request, model)
                stages = self._metrics.stages
                stages.observe(model, "validate", time.perf_counter() - began)
                shown = self._in_flight.entry(ticket.priority)
                with self._admission.room_for(ticket), shown as entry:
                    with stages.timed(model, "tokenize"):
                        generation = await make(request, trace.stage("tokenize"))
                    trace.runs(generation)
                    session = http.headers.get(SESSION_HEADER) or request.user
                    generation.belongs_to(session, record.arrived, ticket)
                    entry.sequences = generation.sequences
                    self._metrics.prompt_tokens.labels(model).inc(generation.prompt_tokens)
                    shape = make_shape(request)
                    answer = self._stream if request.stream else self._whole
                    began = time.perf_counter()
                    trace.stage("admission")
                    async with self._admission.turn(ticket) as turn:
                        generation.starts_in(turn)
                        trace.stage_over()
                        stages.observe(model, "admission", time.perf_counter() - began)
                        with generation.released_at_end(), ends_at(ticket.deadline, generation):
                            response = await answer(http, request, generation, shape)
                trace.status = response.status
                failed = any(sequence.error for sequence in generation.sequences)
                record.outcome = "error" if failed else "ok"
                return response
        finally:
            self._active -= 1
            if self._active == 0:
                self.idle.set()

    async def _whole(
        self, http: web.Request, request: Parameters, generation: Generation, shape: Shape
    ) -> web.StreamResponse:
        choices = await generation.collect()
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
        self, http: web.Request, request: Parameters, generation: Generation, shape: Shape
    ) -> web.StreamResponse:
        """Server-sent events. The status is sent with the first token, so that a refusal can
        still have its own."""
        usage = None if request.include_usage else msgspec.UNSET
        chunk = Response(
            id=shape.id_prefix + generation.rid,
            object=shape.chunk_object,
            model=generation.model,
            choices=[],
            usage=usage,
        )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        try:
            async for index, delta in generation.deltas():
                if not response.prepared:
                    await response.prepare(http)
                    for opened in range(len(generation.sequences)):
                        if (opening := shape.opening(opened)) is not None:
                            chunk.choices = [opening]
                            await response.write(event(chunk))
                chunk.choices = [shape.chunk(index, delta)]
                if request.continuous_usage:
                    chunk.usage = Usage.of(generation)
                await response.write(event(chunk))
            if request.include_usage:
                chunk.choices, chunk.usage = [], Usage.of(generation)
                await response.write(event(chunk))
            await response.write(b"data: [DONE]\n\n")
        except RequestError as error:
            if not response.prepared:
                raise
            await response.write(event(error_body(error)))
        await response.write_eof()
        return response

    def _describe_model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "mlxfleet",
            "default_sampling": self._front.catalog.sampling_defaults(name),
        }


def make_ticket(http: web.Request, request: Parameters, model: str) -> Ticket:
    """A request's place in the queue; InvalidRequestError if its time limit is none."""
    deadline = None
    if (text := http.headers.get(TIMEOUT_HEADER)) is not None:
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s < math.inf:
            raise InvalidRequestError(
                f"the header {TIMEOUT_HEADER} wants a positive number of seconds, not {text!r}",
                param=TIMEOUT_HEADER,
            )
        deadline = asyncio.get_running_loop().time() + timeout_s
    return Ticket(
        client=client_name(http),
        model=model,
        sequences=request.sequences,
        priority=request.priority or "interactive",
        deadline=deadline,
    )


@contextlib.contextmanager
def outcome_into(record: RequestRecord) -> Iterator[None]:
    """Record how a request ends that is not answered as it should be."""
    try:
        yield
    except (asyncio.CancelledError, ConnectionResetError):
        record.outcome = "cancelled"
        raise
    except RequestError as error:
        record.outcome = outcome_of(error)
        raise
    except web.HTTPException:
        record.outcome = "client_error"
        raise


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


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(data) + b"\n\n"


def json_response(data: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=encode(data), status=status, content_type="application/json")


def error_body(error: RequestError) -> dict[str, dict[str, object]]:
    """An error as OpenAI's clients expect it."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: RequestError, status: int | None = None) -> web.Response:
    """An error as an HTTP answer."""
    response = json_response(error_body(error), status or error.status)
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
