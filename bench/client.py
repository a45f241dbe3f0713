"""Closed-loop streaming load on any OpenAI-compatible /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from mlxfleet.bench.result import Failure, LoadResult, RequestResult, summarize
from mlxfleet.bench.sse import EventReader

DONE = b"[DONE]"
MESSAGE_CHARACTERS = 500


class Load(Struct, frozen=True, kw_only=True):
    """`concurrency` streams, each sending its next request when its last one has ended."""

    url: str
    """Base address, such as http://127.0.0.1:8000."""
    prompts: Sequence[str]
    requests: int
    """Requests in all; the prompts are repeated if there are fewer."""
    concurrency: int
    max_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    model: str | None = None
    """Left out of the request if None."""
    extra: dict[str, Any] = {}
    """Further fields of the request body."""
    api_key: str | None = None
    request_timeout_s: float = 120.0
    run_timeout_s: float = 900.0
    """No request goes on for longer than this after the run's start."""

    def body(self, prompt: str) -> bytes:
        """A request as JSON."""
        fields = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return msgspec.json.encode({**given, **self.extra})


class Choice(Struct):
    """What is read of a choice; a chunk that only announces a role has no text."""

    text: str | None = None
    finish_reason: str | None = None


class Usage(Struct):
    """What is read of the token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(Struct):
    """What is read of a stream's event."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class RequestFailed(Exception):
    """The server answered, but not with a complete stream."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def run_load(load: Load) -> LoadResult:
    """Run it to its end. Requests that fail are part of the result; cancelling closes all."""
    results: list[RequestResult] = []
    prompts = enumerate(islice(cycle(load.prompts), load.requests))
    headers = {"Content-Type": "application/json"}
    if load.api_key is not None:
        headers["Authorization"] = f"Bearer {load.api_key}"
    connector = aiohttp.TCPConnector(limit=0)
    began = time.perf_counter()
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        asyncio.TaskGroup() as streams,
    ):
        for _ in range(min(load.concurrency, load.requests)):
            streams.create_task(run_stream(session, load, prompts, began, results))
    results.sort(key=lambda result: result.index)
    return LoadResult(summarize(results), results)


async def run_stream(
    session: aiohttp.ClientSession,
    load: Load,
    prompts: Iterator[tuple[int, str]],
    began: float,
    results: list[RequestResult],
) -> None:
    """One stream: takes prompts off the common iterator until there are none left."""
    for index, prompt in prompts:
        result = RequestResult(index=index, start_s=time.perf_counter() - began)
        try:
            await request(session, load, prompt, result)
        except (
            RequestFailed,
            TimeoutError,
            aiohttp.ClientError,
            OSError,
            msgspec.DecodeError,
            UnicodeDecodeError,
        ) as error:
            result.error = failure_of(error)
        result.duration_s = time.perf_counter() - began - result.start_s
        results.append(result)


async def request(
    session: aiohttp.ClientSession, load: Load, prompt: str, result: RequestResult
) -> None:
    """Send a request and write down what comes."""
    left_s = load.run_timeout_s - result.start_s
    if left_s <= 0:
        raise TimeoutError("not sent: the run's time was over")
    timeout = aiohttp.ClientTimeout(total=min(load.request_timeout_s, left_s))
    url = f"{load.url}/v1/completions"
    events = EventReader()
    sent = time.perf_counter()
    async with session.post(url, data=load.body(prompt), timeout=timeout) as response:
        if response.status != 200:
            raise RequestFailed(f"http_{response.status}", await response.text(errors="replace"))
        async for piece in response.content.iter_any():
            elapsed_s = time.perf_counter() - sent
            for data in events.feed(piece):
                if data != DONE:
                    take(msgspec.json.decode(data, type=Chunk), elapsed_s, result)
    if result.finish_reason is None:
        raise RequestFailed("truncated", "the stream ended without a finish reason")


def take(chunk: Chunk, elapsed_s: float, result: RequestResult) -> None:
    """Add one event to a request's record."""
    if chunk.error is not None:
        raise RequestFailed("error_event", str(chunk.error))
    for choice in chunk.choices or ():
        if choice.text:
            result.chunk_times_s.append(elapsed_s)
            result.text += choice.text
        result.finish_reason = choice.finish_reason or result.finish_reason
    if chunk.usage is not None:
        result.usage_tokens = chunk.usage.completion_tokens
        result.prompt_tokens = chunk.usage.prompt_tokens


def failure_of(error: Exception) -> Failure:
    """An exception as it is counted."""
    message = (str(error) or type(error).__name__)[:MESSAGE_CHARACTERS]
    match error:
        case RequestFailed():
            return Failure(error.kind, message)
        case TimeoutError():
            return Failure("timeout", message)
        case aiohttp.ClientConnectorError():
            return Failure("connect", message)
        case msgspec.DecodeError() | UnicodeDecodeError():
            return Failure("malformed", message)
        case _:
            return Failure("disconnected", message)
