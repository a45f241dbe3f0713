"""Running a set of processes in the foreground, from start to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mlxfleet.common.supervisor import ProcessSpec, Supervisor
from mlxfleet.common.tap.flight import DUMP_SIGNAL

log = logging.getLogger(__name__)


async def supervise(specs: Sequence[ProcessSpec], announce: Callable[[], Awaitable[None]]) -> None:
    """Start, announce when all are ready, wait for a signal or a failure, stop."""
    supervisor = Supervisor()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.info("stopping at once")
            supervisor.force()
        else:
            log.info("stopping; once more to stop at once")
            stop.set()

    async def serve() -> None:
        await supervisor.start(specs)
        await announce()
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(DUMP_SIGNAL, supervisor.dump)
    stopping = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(serve())
    try:
        waited: set[asyncio.Future[Any]] = {stopping, serving, supervisor.failure}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, supervisor.failure):
            if task.done():
                task.result()
    finally:
        serving.cancel()
        await supervisor.stop()
