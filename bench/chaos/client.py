"""A client that asks until it has an answer, and says how each attempt ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from mlxfleet.bench.chaos.answers import (
    Answer,
    EventError,
    MalformedError,
    StreamReader,
    read_whole,
)
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.client import PATHS
from mlxfleet.bench.sse import EventReader

End = Literal["answered", "left", "refused", "broken", "failed", "malformed", "hung"]
SHOWN_CHARACTERS = 300
# A stream that had to wait has its status already, so that a refusal comes as an event.
REFUSALS = ("service_unavailable_error", "rate_limit_error")
# A client that is refused or cut off comes back soon, so that faults meet running requests.
LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True)
class Attempt:
    """One attempt, `began` and `ended` in time.monotonic(). "broken" is a connection that was
    refused or lost, "failed" an answer that is an error."""

    end: End
    began: float
    ended: float
    answer: Answer | None = None
    why: str = ""


class RefusedError(Exception):
    """The server says that it cannot now, and when to come back."""


class FailedError(Exception):
    """The server answers with an error."""


class TruncatedError(Exception):
    """A stream ended without [DONE]."""


class Client:
    """Sends cases to one server."""

    def __init__(self, url: str, keys: tuple[str, ...], deadline_s: float) -> None:
        self._url = url
        self._keys = keys
        self._deadline_s = deadline_s
        # A kept connection may have been lost with a router that was killed long ago.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def close(self) -> None:
        """Close every connection."""
        await self.session.close()

    async def attempt(self, case: Case) -> Attempt:
        """Ask once."""
        began = time.monotonic()

        def over(end: End, answer: Answer | None = None, why: object = "") -> Attempt:
            text = str(why) or type(why).__name__ if why != "" else ""
            return Attempt(end, began, time.monotonic(), answer, text[:SHOWN_CHARACTERS])

        try:
            async with asyncio.timeout(self._deadline_s):
                answer, complete = await self._ask(case)
                return over("answered" if complete else "left", answer)
        except TimeoutError:
            return over("hung", why=f"no answer in {self._deadline_s:.0f} s")
        except RefusedError as error:
            return over("refused", why=error)
        except (FailedError, EventError) as error:
            return over("failed", why=error)
        except MalformedError as error:
            return over("malformed", why=error)
        except (TruncatedError, aiohttp.ClientError, OSError) as error:
            return over("broken", why=error)

    async def _ask(self, case: Case) -> tuple[Answer | None, bool]:
        """The answer, and whether it is all that there is."""
        if case.leaves_after_s is None:
            return await self._send(case)
        try:
            async with asyncio.timeout(case.leaves_after_s):
                return await self._send(case)
        except TimeoutError:
            return None, False

    async def _send(self, case: Case) -> tuple[Answer, bool]:
        headers = {
            "Authorization": f"Bearer {self._keys[case.key]}",
            "Content-Type": "application/json",
        }
        body = msgspec.json.encode(case.body)
        url = self._url + PATHS[case.endpoint]
        async with self.session.post(url, data=body, headers=headers) as response:
            if response.status in (429, 503):
                text = f"{response.status} {await response.text(errors='replace')}"
                raise (RefusedError if "Retry-After" in response.headers else FailedError)(text)
            if response.status != 200:
                text = await response.text(errors="replace")
                raise FailedError(f"{response.status} {text}")
            if not case.streamed:
                return read_whole(case, await response.read()), True
            return await self._stream(case, response)

    async def _stream(self, case: Case, response: aiohttp.ClientResponse) -> tuple[Answer, bool]:
        if response.content_type != "text/event-stream":
            raise MalformedError(f"a stream of {response.content_type}")
        reader, events, count = StreamReader(case), EventReader(), 0
        while piece := await response.content.readany():
            for data in events.feed(piece):
                take(reader, data)
                count += 1
                if count == case.leaves_after_events and not reader.done:
                    response.close()
                    return reader.answer, False
        if not reader.done:
            raise TruncatedError("the stream ended without [DONE]")
        return reader.answer, True


def take(reader: StreamReader, data: bytes) -> None:
    """An event; RefusedError if it refuses a request that has got nothing yet."""
    try:
        reader.take(data)
    except EventError as error:
        begun = any(choice.text or choice.logprobs for choice in reader.answer.choices)
        if error.type in REFUSALS and not begun:
            raise RefusedError(str(error)) from error
        raise


async def ask_until_answered(
    client: Client, case: Case, excused: Callable[[Attempt], bool], counted: Callable[[End], None]
) -> Attempt:
    """Ask again as long as attempts are refused or broken for a reason; the last attempt."""
    while True:
        attempt = await client.attempt(case)
        counted(attempt.end)
        if attempt.end not in ("refused", "broken") or not excused(attempt):
            return attempt
        await asyncio.sleep(LONGEST_PAUSE_S)
