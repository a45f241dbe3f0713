"""Sequences of a scheduler under test: their first attempts, and their names in the worker."""

from __future__ import annotations

from mlxfleet.common.messages import Release
from mlxfleet.workers.scheduler import Scheduler

ATTEMPT = "first"


def row_of(scheduler: Scheduler, rid: str) -> str:
    """A sequence's name in the worker, or one that no row has; a row's name stays as it is."""
    rows = (row for row, running in scheduler._running.items() if running.rid == rid)
    return rid if "#" in rid else next(rows, f"{rid}#0")


def without_number(row: str) -> str:
    """The sequence that a row is of."""
    return row.partition("#")[0]


def release(scheduler: Scheduler, rid: str) -> None:
    """Release a sequence's first attempt."""
    scheduler.release(Release(rid, ATTEMPT))


def knows(scheduler: Scheduler, rid: str) -> bool:
    """Whether a sequence's first attempt is here."""
    return scheduler.find(rid, ATTEMPT) is not None
