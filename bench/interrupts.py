"""Ending a measurement early, in order."""

from __future__ import annotations

import asyncio
import signal


def cancel_on_signals() -> None:
    """Ctrl-C and SIGTERM cancel the task that calls this, which can still put away what it has."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
