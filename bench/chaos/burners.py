"""Processes that take all the CPU time that they get."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# A pipe that closes ends it, so that it does not outlive this process whatever ends that.
BURN = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
while True:
    pass
"""


@asynccontextmanager
async def burning(count: int) -> AsyncIterator[None]:
    """Burn CPU time in so many processes."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", BURN, stdin=asyncio.subprocess.PIPE, stdout=DEVNULL
        )
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            # Ctrl-C ends them too.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
