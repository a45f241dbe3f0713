"""Ending a measurement early, in order."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Sequence


def cancel_on_signals() -> None:
    """Ctrl-C and SIGTERM cancel the task that calls this, which can still put away what it has."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def run_to_end(command: Sequence[str], *, keep_output: bool = False) -> tuple[int, str]:
    """Run a command; its exit status, and its output if that is kept. After Ctrl-C, which it gets
    as well, wait until it has ended its servers."""
    stdout = subprocess.PIPE if keep_output else None
    with subprocess.Popen(command, stdout=stdout, text=True) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.communicate()
            raise
    return process.returncode, output or ""
