"""An event loop whose time passes only when it waits, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class Clock:
    """Seconds; stands in the place of time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class InstantSelector(selectors.DefaultSelector):
    """Nothing is ever ready, and waiting only moves the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait."""
        self._clock.now += max(timeout or 0.0, 0.0)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs on a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(InstantSelector(clock))
        self._virtual = clock

    def time(self) -> float:
        """Now."""
        return self._virtual.now
