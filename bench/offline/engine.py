"""The engine that is measured, and how its processes are started and stopped."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from mlxfleet.common.config import SchedulerOptions, WorkerOptions, WorkerProcess, validated
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.supervisor import ProcessSpec, Supervisor


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model, and the options that all borders have in common."""

    model_dir: Path
    name: str
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    worker: WorkerOptions = field(default_factory=WorkerOptions)

    def checked(self, concurrency: int) -> Engine:
        """ConfigError if an option is wrong, or that many streams would not run at once."""
        validated(self.scheduler)
        validated(self.worker)
        if concurrency > self.scheduler.max_running:
            raise ConfigError(
                f"--concurrency: {concurrency} streams need --max-running {concurrency} or more"
            )
        return self

    def bare_worker(self) -> WorkerProcess:
        """The worker alone, which keeps nothing of earlier prompts."""
        return WorkerProcess(
            name="bare-loop",
            model_dir=self.model_dir,
            scheduler_address="",
            max_rows=self.scheduler.max_running,
            max_chunk_tokens=self.scheduler.max_chunk_tokens,
            options=replace(self.worker, prefix_cache_gb=0.0),
        )

    def flags(self) -> list[str]:
        """The options for `mlxfleet launch`, as far as they are not the defaults."""
        return [*flags_of(self.scheduler), *flags_of(self.worker)]


def flags_of(options: SchedulerOptions | WorkerOptions) -> list[str]:
    """Flags for the fields that differ from their defaults."""
    found = []
    for field_ in fields(options):
        value = getattr(options, field_.name)
        if value != field_.default:
            flag = "--" + field_.name.replace("_", "-")
            found.append(flag if value is True else f"{flag}={value}")
    return found


@contextlib.asynccontextmanager
async def processes(specs: Sequence[ProcessSpec]) -> AsyncIterator[Supervisor]:
    """Start them, wait until all are ready, and stop them in the end; ChildFailedError if one
    cannot be kept running until then."""
    supervisor = Supervisor()
    try:
        await supervisor.start(specs)
        yield supervisor
    finally:
        await supervisor.stop()
