"""What the process of the bare loop is told, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from mlxfleet.bench.offline.work import Part
from mlxfleet.common.config import WorkerProcess


@dataclass(frozen=True, kw_only=True)
class BareLoopProcess:
    """All that it is told: the worker that it stands for, and what to run in this order."""

    name: str
    worker: WorkerProcess
    parts: tuple[Part, ...]


class Wave(Struct, frozen=True):
    """As many rows as there are streams: when they began, in s since the start of their part, and
    when each token was there of all of them, in s since their own start."""

    sent_s: float
    token_times_s: list[float]
