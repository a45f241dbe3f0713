"""How far a run is, on a terminal as a bar and elsewhere as a line now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlxfleet.bench.load import LoadRun

BAR_PERIOD_S = 0.5
LINE_PERIOD_S = 10.0


@asynccontextmanager
async def shown(run: LoadRun, title: str, console: Console) -> AsyncIterator[None]:
    """Show it while the block runs. Drawing is left to this loop: a thread of its own would take
    turns with the one that measures."""
    task = asyncio.create_task(draw(run, title, console))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def draw(run: LoadRun, title: str, console: Console) -> None:
    """Until cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_PERIOD_S)
            done = f"{title}: {len(run.records):,} of {run.planned:,} requests"
            console.print(f"{done}, {details(run)}", highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task(title, total=run.planned, details="")
        while True:
            progress.update(bar, completed=len(run.records), details=details(run))
            progress.refresh()
            await asyncio.sleep(BAR_PERIOD_S)


def details(run: LoadRun) -> str:
    """What there is to say besides the number of requests."""
    tokens_per_s = run.output_tokens / run.elapsed_s
    failed = f", {run.failed} failed" if run.failed else ""
    return f"{run.running} running{failed}, {tokens_per_s:,.0f} tokens/s"
