"""Streams that have to be the same as in an undisturbed run."""

from __future__ import annotations

import asyncio

import aiohttp

from mlxfleet.bench.client import Answer, Target, ask
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import ServerError


class Streams:
    """Half of them greedy, half seeded; `wrong` says how some ended otherwise than before."""

    def __init__(self, url: str, *, streams: int, max_tokens: int) -> None:
        self._url = url
        self._streams = streams
        self._max_tokens = max_tokens
        self._expected: list[Answer] = []
        self.finished = 0
        self.wrong: list[str] = []

    async def run_once(self, session: aiohttp.ClientSession, stream: int) -> Answer:
        """One stream from start to end."""
        temperature = 0.9 if stream % 2 else 0.0
        body = {"seed": stream, "ignore_eos": True, "temperature": temperature}
        target = Target(url=self._url, body=body)
        prompt = f"{stream} times upon a time, " * (1 + 5 * stream)
        encoded = target.encode({"prompt": prompt}, self._max_tokens)
        record = Request(run="", index=stream, due_s=0.0, sent_s=0.0)
        return await ask(session, target, encoded, record)

    async def learn(self, session: aiohttp.ClientSession) -> None:
        """What they say undisturbed. ServerError if one fails."""
        runs = (self.run_once(session, stream) for stream in range(self._streams))
        self._expected = list(await asyncio.gather(*runs))
        if errors := [a.record.error.message for a in self._expected if a.record.error]:
            raise ServerError(f"a stream failed without a rogue: {errors[0]}")

    async def run_on(
        self, session: aiohttp.ClientSession, stream: int, over: asyncio.Event
    ) -> None:
        """One stream again and again, compared each time."""
        expected = self._expected[stream]
        while not over.is_set():
            answer = await self.run_once(session, stream)
            self.finished += 1
            if (error := answer.record.error) is not None:
                self.wrong.append(f"stream {stream}: {error.message}")
            elif answer.text != expected.text:
                self.wrong.append(f"stream {stream}: {len(answer.text)} characters, not the same")
            elif answer.record.output_tokens != expected.record.output_tokens:
                self.wrong.append(f"stream {stream}: {answer.record.output_tokens} tokens")

    def ended(self) -> str:
        """How many streams have ended, and how many of them wrong."""
        return f"{self.finished} streams ended, {len(self.wrong)} wrong"
