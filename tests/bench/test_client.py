"""The load client against a server that streams what a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from mlxfleet.bench.client import Choice, Chunk, Load, run_load, take
from mlxfleet.bench.result import LoadResult, RequestResult
from mlxfleet.bench.servers import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEADLINE_S = 20.0
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}


def text(content: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    """A chunk as completion servers send it."""
    return {"choices": [{"index": 0, "text": content, "finish_reason": finish_reason}]}


ROLE_ONLY = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
ANSWER = [text("one"), text(" two", "length")]


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def answer(request: web.Request, chunks: list[dict[str, Any]]) -> web.StreamResponse:
    """A whole stream."""
    response = await open_stream(request)
    for chunk in chunks:
        await response.write(event(chunk))
    await response.write(b"data: [DONE]\n\n")
    return response


def streaming(*chunks: dict[str, Any]) -> Handler:
    """A handler that answers every request with these chunks."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await answer(request, list(chunks))

    return handler


def make_load(url: str, **changes: Any) -> Load:
    fields = {"prompts": ["a prompt"], "requests": 1, "concurrency": 1, "max_tokens": 8}
    return Load(url=url, **{**fields, **changes})


async def with_server(handler: Handler, use: Callable[[str], Awaitable[Any]]) -> Any:
    """Serve while `use` runs with the server's address."""
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with asyncio.timeout(DEADLINE_S):
            return await use(f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()


def run(handler: Handler, **changes: Any) -> LoadResult:
    """The result of a load on a server with this handler."""

    async def use(url: str) -> LoadResult:
        return await run_load(make_load(url, **changes))

    result: LoadResult = asyncio.run(with_server(handler, use))
    return result


def test_chunks_without_text_do_not_count() -> None:
    chunks = [ROLE_ONLY, text(""), text("one"), text(None), text(" two"), text("", "stop")]
    [request] = run(streaming(*chunks)).requests
    assert request.text == "one two"
    assert len(request.chunk_times_s) == 2
    assert request.finish_reason == "stop"
    assert request.error is None


def test_first_text_sets_ttft() -> None:
    request = RequestResult(index=0, start_s=0.0)
    for elapsed_s, content in enumerate(["", "one", " two", "", " three"], start=1):
        take(Chunk(choices=[Choice(text=content)]), elapsed_s, request)
    assert request.ttft_s == 2
    assert request.gaps_s == [1, 2]
    assert request.longest_gap_s == 2


def test_usage_is_preferred_to_the_number_of_chunks() -> None:
    result = run(streaming(*ANSWER, USAGE))
    assert result.requests[0].completion_tokens == 7
    assert result.requests[0].prompt_tokens == 5
    assert result.summary.output_tokens == 7
    assert result.summary.tokens_counted_by == "usage"


def test_chunks_are_counted_without_usage() -> None:
    result = run(streaming(*ANSWER))
    assert result.summary.output_tokens == 2
    assert result.summary.tokens_counted_by == "chunks"


def test_request_asks_for_a_stream_with_usage_and_carries_extra_fields() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await answer(request, ANSWER)

    run(handler, top_p=0.5, extra={"ignore_eos": True})
    assert bodies == [
        {
            "prompt": "a prompt",
            "max_tokens": 8,
            "temperature": 0.0,
            "top_p": 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ]


def test_http_error_fails_only_its_request() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["prompt"] == "bad":
            return web.json_response({"error": {"message": "come back later"}}, status=429)
        return await answer(request, ANSWER)

    result = run(handler, prompts=["good", "bad"], requests=4)
    assert result.summary.errors == {"http_429": 2}
    assert result.summary.completed == 2
    failed = [request for request in result.requests if request.error]
    assert [request.index for request in failed] == [1, 3]
    assert all(request.error and "come back" in request.error.message for request in failed)


def test_dropped_connection_is_a_failure_and_its_tokens_do_not_count() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(event(text("one")))
        assert request.transport is not None
        request.transport.close()
        return response

    result = run(handler)
    assert result.summary.errors == {"disconnected": 1}
    assert result.summary.output_tokens == 0


def test_stream_without_finish_reason_is_truncated() -> None:
    assert run(streaming(text("one"))).summary.errors == {"truncated": 1}


def test_error_event_is_a_failure() -> None:
    handler = streaming(text("one"), {"error": {"message": "the node died"}})
    assert run(handler).summary.errors == {"error_event": 1}


def test_malformed_event_is_a_failure() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(b"data: {nonsense\n\n")
        return response

    assert run(handler).summary.errors == {"malformed": 1}


def test_nobody_listening_is_a_failure() -> None:
    result = asyncio.run(run_load(make_load(f"http://127.0.0.1:{free_port()}")))
    assert result.summary.errors == {"connect": 1}


def test_silent_server_times_out() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    assert run(handler, request_timeout_s=0.1).summary.errors == {"timeout": 1}


def test_requests_after_the_end_of_the_run_are_not_sent() -> None:
    result = run(streaming(*ANSWER), requests=3, run_timeout_s=0.0)
    assert result.summary.errors == {"timeout": 3}


def test_loop_is_closed_at_the_given_concurrency() -> None:
    active, most = 0, 0

    async def use(url: str) -> LoadResult:
        return await run_load(make_load(url, requests=12, concurrency=4))

    async def main() -> LoadResult:
        together = asyncio.Barrier(4)

        async def handler(request: web.Request) -> web.StreamResponse:
            nonlocal active, most
            active += 1
            most = max(most, active)
            await together.wait()
            active -= 1
            return await answer(request, ANSWER)

        result: LoadResult = await with_server(handler, use)
        return result

    result = asyncio.run(main())
    assert result.summary.completed == 12
    assert [request.index for request in result.requests] == list(range(12))
    assert most == 4


def test_cancelling_closes_the_connections() -> None:
    async def main() -> None:
        streaming_now, gone = asyncio.Event(), asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            response = await open_stream(request)
            await response.write(event(text("one")))
            streaming_now.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
            return response

        async def use(url: str) -> None:
            load = asyncio.create_task(run_load(make_load(url)))
            await streaming_now.wait()
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            await gone.wait()

        await with_server(handler, use)

    asyncio.run(main())
