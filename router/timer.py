"""A call that is to be made later, unless it is started anew or stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Timer:
    """At most one call of the running event loop."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, after_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call after so many seconds, and not what was to be called."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(after_s, call, *arguments)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._handle is not None

    def stop(self) -> None:
        """Do not call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
