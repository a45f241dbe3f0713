"""Heartbeats: what a server knows of the processes that present themselves to it."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass

import psutil

HEARTBEAT_S = 0.5
SILENT_AFTER_S = 3.0
# A process that works for sequences and says nothing for so long, or stands still, is hung.
HUNG_AFTER_S = 2.5
# A worker that loads its model and gets no further for so long is stuck.
LOAD_STUCK_S = 60.0
# One that has been silent for so long is sent something: that fails if its socket is closed.
PROBE_AFTER_S = 0.4


def new_incarnation() -> str:
    """An id that tells this run of a process from every other."""
    return secrets.token_hex(6)


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


@dataclass
class Peer:
    """A process that said Hello. `identity` addresses it on the server's ROUTER socket."""

    name: str
    identity: bytes
    incarnation: str
    last_seen: float
    restarts: int = 0
    dropped_frames: int = 0
    rss_bytes: int = 0

    def silent(self, now: float | None = None) -> bool:
        """Whether it has said nothing for suspiciously long."""
        return (now or time.monotonic()) - self.last_seen > SILENT_AFTER_S
