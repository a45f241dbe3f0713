"""How long a request waits for what is not there yet: a node, a detokenizer, a tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from mlxfleet.common.errors import DeadlineError, UnavailableError

# Whoever waits looks again when a node has changed, and this often in any case.
LOOK_AGAIN_S = 0.25
RETRY_AFTER_S = 5

T = TypeVar("T")


class Patience:
    """Waits of requests, each `limit_s` at most; while a node of the model that could take so many
    tokens `loads`, and gets on with it, that does not count. `waiting` is how many wait now."""

    def __init__(self, limit_s: float, loads: Callable[[str, int], bool]) -> None:
        self.limit_s = limit_s
        self.waiting = 0
        self._loads = loads
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Something has changed that requests may have waited for."""
        self._changed.set()

    def loads(self, model: str, tokens: int = 1) -> bool:
        """Whether a node of a model gets on with loading that could then take so many tokens."""
        return self._loads(model, tokens)

    async def until(
        self, model: str, find: Callable[[], T | None], missing: str, tokens: int = 1
    ) -> T:
        """What is found, as soon as it is. UnavailableError, which says what is `missing`, when a
        request of so many tokens has waited for long enough."""
        if (found := find()) is not None:
            return found
        wait = Wait(self.limit_s, lambda: self._loads(model, tokens))
        self.waiting += 1
        try:
            while (found := find()) is None:
                if wait.over(time.monotonic()):
                    raise UnavailableError(missing, retry_after_s=RETRY_AFTER_S)
                await self._change()
        finally:
            self.waiting -= 1
        return found

    async def _change(self) -> None:
        # Everybody who waits for it is woken by the same one; later changes are another's.
        if self._changed.is_set():
            self._changed = asyncio.Event()
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._changed.wait()
        except TimeoutError:
            return


class Wait:
    """One wait, which is over after `limit_s` in which nothing that could end it got on."""

    def __init__(self, limit_s: float, gets_on: Callable[[], bool]) -> None:
        self._limit_s = limit_s
        self._gets_on = gets_on
        self._idle_since: float | None = None

    def over(self, now: float) -> bool:
        """Whether it has been long enough at a time.monotonic(); ask regularly."""
        if self._gets_on() or self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since > self._limit_s


def within(deadline: float | None) -> AbstractAsyncContextManager[None]:
    """DeadlineError if the body takes until a time of the event loop; None is never."""
    return contextlib.nullcontext() if deadline is None else ending_at(deadline)


@asynccontextmanager
async def ending_at(deadline: float) -> AsyncIterator[None]:
    """DeadlineError if the body takes until a time of the event loop."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise DeadlineError("the request did not end within its time limit") from error
