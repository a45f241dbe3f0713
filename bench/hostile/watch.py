"""The server's processes: whether all live, and how large they are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from rich.table import Table

from mlxfleet.bench.processes import process_tree

EVERY_S = 0.25
# --memory-gb of the server.
WORKER_MB = 1_000.0
OURS = re.compile(r"(router|tokenizer|detokenizer|scheduler|worker|telemetry)(-\d+)?")


class Watch:
    """Looks at the processes of a server; sizes are resident memory in MB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.pids = self._look()[0]
        self.start: dict[str, float] = {}
        self.end: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self.died: dict[str, None] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        """Look once."""
        pids, self.end = self._look()
        for name, size in self.end.items():
            self.peak[name] = max(size, self.peak.get(name, 0.0))
        for name, pid in self.pids.items():
            if pids.get(name) not in (pid, None):
                self.died[f"{name} (process {pid}) has died and was started again"] = None
            elif name not in pids:
                self.died[f"{name} (process {pid}) is gone"] = None
        self.pids = pids | {name: pid for name, pid in self.pids.items() if name not in pids}

    def warm(self) -> None:
        """From here on nothing should grow."""
        self.look()
        self.start = dict(self.end)

    def grown(self, growth_mb: float, largest_mb: float) -> Iterator[str]:
        """Which processes have become too large. A worker fills the caches that it has planned, so
        only that plan bounds it."""
        for name, size in self.end.items():
            worker = name.startswith("worker")
            if not worker and size - self.start.get(name, size) > growth_mb:
                yield f"{name} has grown from {self.start[name]:.0f} to {size:.0f} MB"
            if self.peak[name] > (WORKER_MB if worker else largest_mb):
                yield f"{name} was as large as {self.peak[name]:.0f} MB"

    def table(self) -> Table:
        """Sizes of all."""
        table = Table("process", "start", "end", "peak", title="Resident memory, MB")
        for name, size in self.end.items():
            start = self.start.get(name, size)
            table.add_row(name, f"{start:.0f}", f"{size:.0f}", f"{self.peak[name]:.0f}")
        return table

    def _look(self) -> tuple[dict[str, int], dict[str, float]]:
        tree = [use for use in process_tree(self._pid) if OURS.fullmatch(use.name)]
        return {use.name: use.pid for use in tree}, {u.name: u.rss_bytes / 1e6 for u in tree}
