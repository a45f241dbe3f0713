"""One streaming request to an OpenAI-compatible server, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from mlxfleet.bench.conversations import Endpoint
from mlxfleet.bench.records import Failure, Request
from mlxfleet.bench.sse import EventReader

DONE = b"[DONE]"
MESSAGE_CHARACTERS = 500
PATHS: dict[Endpoint, str] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
}
STREAM_OPTIONS = "stream_options"


class Target(Struct, frozen=True, kw_only=True):
    """Where requests go, and what all of them have in common."""

    url: str
    """Base address, such as http://127.0.0.1:8000."""
    endpoint: Endpoint = "completions"
    model: str | None = None
    """Left out of the request if None."""
    headers: Mapping[str, str] = {}
    body: Mapping[str, Any] = {}
    """Further fields of the request's body."""
    without: tuple[str, ...] = ()
    """Fields of the body that the server does not take."""
    timeout_s: float = 600.0

    def fields(self) -> dict[str, object]:
        """What every request has."""
        fields: dict[str, object] = {
            "model": self.model,
            "temperature": 0.0,
            "stream": True,
            STREAM_OPTIONS: {"include_usage": True},
            **self.body,
        }
        return {n: v for n, v in fields.items() if v is not None and n not in self.without}

    def encode(self, prompt: Mapping[str, object], max_tokens: int) -> bytes:
        """A request's body as JSON."""
        return msgspec.json.encode({**self.fields(), **prompt, "max_tokens": max_tokens})


class Delta(Struct):
    """What a chunk adds to a chat's answer; reasoning is text too, by either of its names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(Struct):
    """What is read of a choice; a chunk that only announces a role has no text."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(Struct):
    """How the prompt's tokens were come by."""

    cached_tokens: int | None = None


class Usage(Struct):
    """What is read of the token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Chunk(Struct):
    """What is read of a stream's event."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


decode_chunk: Callable[[bytes], Chunk] = msgspec.json.Decoder(Chunk).decode


class RequestFailed(Exception):
    """The server answered, but not with a complete stream."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Answer:
    """Fills a request's record from the events of its stream; keeps the text."""

    def __init__(self, record: Request) -> None:
        self.record = record
        self._texts: list[str] = []
        self._reasoning: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far, without reasoning."""
        return "".join(self._texts)

    @property
    def all_text(self) -> str:
        """Everything that was generated."""
        return "".join(self._reasoning) + self.text

    def take(self, chunk: Chunk, elapsed_s: float) -> None:
        """An event that came at this time. RequestFailed if it says that there is an error."""
        record = self.record
        if chunk.error is not None:
            raise RequestFailed("error_event", str(chunk.error))
        for choice in chunk.choices or ():
            delta = choice.delta or Delta()
            text = choice.text or delta.content
            reasoning = delta.reasoning_content or delta.reasoning
            if text or reasoning:
                record.token_times_s.append(elapsed_s)
                self._texts.append(text or "")
                self._reasoning.append(reasoning or "")
            record.finish_reason = choice.finish_reason or record.finish_reason
        if (usage := chunk.usage) is not None:
            record.output_tokens = usage.completion_tokens
            record.input_tokens = usage.prompt_tokens
            if (details := usage.prompt_tokens_details) is not None:
                record.cached_tokens = details.cached_tokens


def open_session(target: Target) -> aiohttp.ClientSession:
    """A session without a limit of connections, for as many streams as there are."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Content-Type": "application/json", **target.headers},
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        # Pieces are read as soon as they are there; a buffer would only be copied.
        read_bufsize=2**18,
    )


async def ask(
    session: aiohttp.ClientSession, target: Target, body: bytes, record: Request
) -> Answer:
    """Send a request; its record says what came, and why it failed if it did."""
    answer = Answer(record)
    sent = time.perf_counter()
    try:
        await stream(session, target.url + PATHS[target.endpoint], body, sent, answer)
    except (
        RequestFailed,
        TimeoutError,
        aiohttp.ClientError,
        OSError,
        msgspec.DecodeError,
        UnicodeDecodeError,
    ) as error:
        record.error = failure_of(error)
    finally:
        record.duration_s = time.perf_counter() - sent
    return answer


async def stream(
    session: aiohttp.ClientSession, url: str, body: bytes, sent: float, answer: Answer
) -> None:
    """Read a stream to its end."""
    events = EventReader()
    async with session.post(url, data=body) as response:
        if response.status != 200:
            raise RequestFailed(f"http_{response.status}", await response.text(errors="replace"))
        read = response.content.readany
        while piece := await read():
            elapsed_s = time.perf_counter() - sent
            for data in events.feed(piece):
                if data != DONE:
                    answer.take(decode_chunk(data), elapsed_s)
    if answer.record.finish_reason is None:
        raise RequestFailed("truncated", "the stream ended without a finish reason")


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
