"""Load against a server that streams what a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from mlxfleet.bench.arrivals import Arrival, ClosedLoop, OpenLoop
from mlxfleet.bench.client import Target
from mlxfleet.bench.conversations import Conversation, Endpoint, Turn
from mlxfleet.bench.load import Load, LoadResult, run_load
from mlxfleet.bench.prompt_load import prompt_load
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
    return prompt_load(url=url, **{**fields, **changes})


def conversing(
    url: str,
    *conversations: tuple[str, ...],
    endpoint: Endpoint = "completions",
    arrival: Arrival | None = None,
    **more: Any,
) -> Load:
    """Conversations of these questions."""
    return Load(
        target=Target(url=url, endpoint=endpoint),
        conversations=[
            Conversation(tuple(Turn(text=text, max_tokens=8) for text in questions))
            for questions in conversations
        ],
        arrival=arrival or ClosedLoop(1),
        **more,
    )


async def with_server(handler: Handler, use: Callable[[str], Awaitable[Any]]) -> Any:
    """Serve while `use` runs with the server's address."""
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    app.router.add_post("/v1/chat/completions", handler)
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
    assert len(request.token_times_s) == 2
    assert request.finish_reason == "stop"
    assert request.error is None


def test_usage_is_preferred_to_the_number_of_chunks() -> None:
    result = run(streaming(*ANSWER, USAGE))
    assert result.requests[0].output_tokens == 7
    assert result.requests[0].input_tokens == 5
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

    run(handler, extra={"ignore_eos": True, "top_p": 0.5, "stop": None})
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

    assert run(handler, timeout_s=0.1).summary.errors == {"timeout": 1}


def test_answers_of_servers_that_count_nothing_are_counted_by_the_tokenizer() -> None:
    async def use(url: str) -> LoadResult:
        return await run_load(conversing(url, ("Hi",), count_tokens=len))

    [request] = asyncio.run(with_server(streaming(*ANSWER), use)).requests
    assert request.output_tokens == len("one two")
    assert request.tokens_counted_by == "tokenizer"


def test_no_turn_begins_after_the_time_is_over() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return await answer(request, ANSWER)

    async def use(url: str) -> LoadResult:
        return await run_load(conversing(url, ("a", "b"), ("c",), max_seconds=0.1))

    [request] = asyncio.run(with_server(handler, use)).requests
    assert request.error is None


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("completions", ["A", "Aone twoB"]),
        (
            "chat",
            [
                [{"role": "user", "content": "A"}],
                [
                    {"role": "user", "content": "A"},
                    {"role": "assistant", "content": "one two"},
                    {"role": "user", "content": "B"},
                ],
            ],
        ),
    ],
)
def test_answers_go_into_the_next_turns_prompt(endpoint: Endpoint, expected: Any) -> None:
    prompts = []
    chunks = ANSWER
    if endpoint == "chat":
        contents = [{"content": "one"}, {"reasoning_content": "why?"}, {"content": " two"}]
        chunks = [{"choices": [{"delta": delta}]} for delta in contents]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompts.append(body.get("prompt") or body["messages"])
        return await answer(request, chunks)

    async def use(url: str) -> LoadResult:
        return await run_load(conversing(url, ("A", "B"), endpoint=endpoint))

    requests = asyncio.run(with_server(handler, use)).requests
    assert prompts == expected
    assert [(r.index, r.conversation, r.turn) for r in requests] == [(0, 0, 0), (1, 0, 1)]


def test_a_failed_turn_ends_its_conversation_only() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["prompt"] == "bad":
            return web.Response(status=500)
        return await answer(request, ANSWER)

    async def use(url: str) -> LoadResult:
        return await run_load(conversing(url, ("bad", "never asked"), ("good", "better")))

    requests = asyncio.run(with_server(handler, use)).requests
    assert [(r.index, r.error is None) for r in requests] == [(0, False), (2, True), (3, True)]


def test_open_loop_does_not_wait_for_answers() -> None:
    async def main() -> LoadResult:
        together = asyncio.Barrier(3)

        async def handler(request: web.Request) -> web.StreamResponse:
            await together.wait()
            return await answer(request, ANSWER)

        async def use(url: str) -> LoadResult:
            arrival = OpenLoop([0.0, 0.05, 0.1])
            return await run_load(conversing(url, ("a",), ("b",), ("c",), arrival=arrival))

        result: LoadResult = await with_server(handler, use)
        return result

    requests = asyncio.run(main()).requests
    assert [request.due_s for request in requests] == [0.0, 0.05, 0.1]
    assert all(request.sent_s >= request.due_s for request in requests)
    assert all(request.error is None for request in requests)


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
