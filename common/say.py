"""Lines that other programs wait for on standard output."""

from __future__ import annotations

import sys


def say(*lines: str) -> None:
    """Print lines in one write each, also where Python does not buffer (PYTHONUNBUFFERED): log
    lines of other processes may go to the same pipe and must not come in between."""
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
