"""What was found, in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from mlxfleet.bench.report.cautions import cautions
from mlxfleet.bench.report.loaded import Loaded
from mlxfleet.bench.report.plain_table import PlainTable, rich_table

FILE_WIDTH = 120


def show(found: Loaded, tables: Iterable[PlainTable]) -> None:
    """Print what has to be known first, then the tables that are not empty."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    for caution in cautions(found):
        console.print(f"WARNING: {caution}", style="bold yellow", markup=False, highlight=False)
    for table in tables:
        if table.rows:
            console.print(rich_table(table))
