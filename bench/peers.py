"""mlxfleet and the servers people run today, side by side in one run.

Usage: `python -m mlxfleet.bench.peers --peers-script PATH --model DIR`

In every round the servers start in another order. Machines are noisy, so the ratios of one run
say more than its absolute figures.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import cyclopts
import msgspec
import uvloop
from rich.console import Console

from mlxfleet.bench.comparison import Comparison
from mlxfleet.bench.peer_options import Options
from mlxfleet.bench.side_by_side import compare
from mlxfleet.bench.tables import load_table, ratio_table, start_table
from mlxfleet.common.errors import ExitCode, MlxfleetError

FILE_WIDTH = 120


def write_json(comparison: Comparison, path: Path) -> None:
    """Readable by people and programs."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(comparison, enc_hook=str), indent=1))


def main(options: Options) -> None:
    """Compare mlxfleet with other servers under the same load."""
    console = Console(stderr=True)
    try:
        comparison = uvloop.run(compare(options.validated(), console))
    except MlxfleetError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(ExitCode.FORCED)
    if options.out is not None:
        write_json(comparison, options.out)
    tables = Console()
    if not tables.is_terminal:
        tables = Console(width=FILE_WIDTH)
    for table in (load_table, ratio_table, start_table):
        if (shown := table(comparison)).row_count:
            tables.print(shown)
    if any(start.error for start in comparison.starts):
        sys.exit(ExitCode.INTERNAL)


if __name__ == "__main__":
    cyclopts.run(main)
