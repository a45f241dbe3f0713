"""The HTTP API: routes, authentication, errors, and the two ways to answer."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from mlxfleet.common.errors import (
    AuthenticationError,
    GenerationError,
    InvalidRequestError,
    RequestError,
    UnavailableError,
)
from mlxfleet.router.generation import Front, Generation
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, Parameters, parse
from mlxfleet.router.shapes import ChatShape, CompletionShape, Response, Usage

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Shape = ChatShape | CompletionShape

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
DRAINING_RETRY_AFTER_S = 10
encode = msgspec.json.Encoder().encode


class Api:
    """Handlers of all routes. `draining` makes it refuse new work; `idle` says that none runs."""

    def __init__(
        self,
        *,
        api_keys: tuple[str, ...],
        front: Front,
        metrics: Metrics,
        can_generate: Callable[[], bool],
    ) -> None:
        self._api_keys = [key.encode() for key in api_keys]
        self._front = front
        self._metrics = metrics
        self._can_generate = can_generate
        self._created = int(time.time())
        self.draining = False
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def application(self, max_body_bytes: int) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            client_max_size=max_body_bytes,
            middlewares=[self._answer_errors, self._authenticate],
        )
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completion),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._one_model),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._show_metrics),
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
        except web.HTTPException as error:
            text = f"{request.method} {request.path}: {error.reason}"
            return error_response(InvalidRequestError(text, code="not_found"), error.status)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._api_keys and request.path not in OPEN_PATHS:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            given = key.strip().encode(errors="surrogateescape")
            # Compare with every key, so that the time tells nothing.
            matches = [hmac.compare_digest(given, known) for known in self._api_keys]
            if scheme.lower() != "bearer" or not any(matches):
                raise AuthenticationError(
                    "a valid API key is needed, as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                )
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

    # --- generation ---------------------------------------------------------------------------

    async def _generate(
        self,
        http: web.Request,
        endpoint: str,
        kind: Any,
        make: Callable[[Any], Awaitable[Generation]],
        make_shape: Callable[[Any], Shape],
    ) -> web.StreamResponse:
        """Answer a request for tokens, and count how it ended."""
        began = time.perf_counter()
        outcome = "error"
        self._active += 1
        self.idle.clear()
        try:
            if self.draining:
                raise UnavailableError(
                    "the server is shutting down", retry_after_s=DRAINING_RETRY_AFTER_S
                )
            request = parse(kind, await http.read())
            self._front.catalog.find(request.model)
            with self._front.room_for(request):
                generation = await make(request)
                self._metrics.prompt_tokens.inc(generation.prompt_tokens)
                shape = make_shape(request)
                answer = self._stream if request.stream else self._whole
                with generation.released_at_end():
                    response = await answer(http, request, generation, shape)
            failed = any(sequence.error for sequence in generation.sequences)
            outcome = "error" if failed else "ok"
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            outcome = "cancelled"
            raise
        except RequestError as error:
            outcome = outcome_of(error)
            raise
        except web.HTTPException:
            outcome = "client_error"
            raise
        finally:
            self._active -= 1
            if self._active == 0:
                self.idle.set()
            self._metrics.requests.labels(endpoint, outcome).inc()
            self._metrics.end_to_end.labels(endpoint).observe(time.perf_counter() - began)

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
        }


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


def outcome_of(error: RequestError) -> str:
    """How a refusal is counted."""
    if isinstance(error, GenerationError):
        return "error"
    return "backpressure" if error.status in (429, 503) else "client_error"
