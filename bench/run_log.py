"""The records of a measurement that makes its own runs: written down, and kept to be shown."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxfleet.bench.git_state import git_state
from mlxfleet.bench.machine import command_line, describe_machine, own_versions
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.records import Record, Request, Run, Summary
from mlxfleet.bench.report.loaded import Loaded, LoadedRun, add

PACKAGES = ("mlxfleet", "mlx", "mlx-lm", "tokenizers", "aiohttp", "uvloop", "msgspec")


class RunLog:
    """Writes every record at once, so that what was measured is there whatever ends the process."""

    def __init__(self, recorder: Recorder, path: Path | None) -> None:
        self._recorder = recorder
        self._path = path or Path("results")
        self._runs: dict[str, LoadedRun] = {}
        self.loaded = Loaded()

    def write(self, record: Record) -> None:
        """Add a record."""
        self._recorder.write(record)
        self._recorder.flush()
        add(self.loaded, self._runs, record, self._path)

    def write_run(self, run: Run, requests: Sequence[Request], summary: Summary) -> None:
        """Add a run that is over; its requests take on its id."""
        self.write(run)
        for request in requests:
            request.run = run.id
            self._recorder.write(request)
            self._runs[run.id].requests.append(request)
        self.write(summary)


def new_run(
    *,
    side: str,
    round_number: int,
    concurrency: int,
    model: str,
    data: dict[str, Any],
    seed: int,
    url: str = "",
    server: dict[str, Any] | None = None,
) -> Run:
    """A closed loop that begins now, on this machine."""
    return Run(
        id=uuid.uuid4().hex[:12],
        began=datetime.now(UTC).isoformat(timespec="milliseconds"),
        url=url,
        endpoint="completions" if url else "",
        model=model,
        arrival={"kind": "closed_loop", "concurrency": concurrency},
        data=data,
        seed=seed,
        command_line=command_line(),
        machine=describe_machine(),
        versions=own_versions(PACKAGES),
        git=git_state(),
        server=server or {},
        side=side,
        round=round_number,
    )
