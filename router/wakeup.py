"""Tells the task of an HTTP request that one of its sequences has something new."""

from __future__ import annotations

import asyncio


class Wakeup:
    """As an asyncio.Event with a single waiter, in less time: each token sets it and waits for
    it."""

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether there is something new."""
        return self._set

    def set(self) -> None:
        """There is something new."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """What was new has been seen."""
        self._set = False

    async def wait(self) -> None:
        """Until there is something new."""
        if self._set:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
