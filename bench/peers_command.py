"""`mlxfleet bench peers`: mlxfleet and the servers people run today, side by side."""

from __future__ import annotations

import sys

import uvloop
from rich.console import Console

from mlxfleet.bench.peer_options import Options
from mlxfleet.bench.report.groups import groups_of
from mlxfleet.bench.report.show import show
from mlxfleet.bench.report.tables import ratios_table, sides_table, starts_table
from mlxfleet.bench.servers import MLXFLEET
from mlxfleet.bench.side_by_side import compare
from mlxfleet.common.errors import ExitCode


def peers(options: Options) -> None:
    """Compare mlxfleet with other servers under the same load.

    In every round the servers start in another order, one at a time. Machines are noisy, so the
    ratios of one run say more than its absolute figures.
    """
    found, complete = uvloop.run(compare(options.validated(), Console(stderr=True)))
    groups = groups_of(found)
    tables = (t for g in groups for t in (sides_table(g), ratios_table(g, MLXFLEET)))
    show(found, [*tables, starts_table(found)])
    if not complete:
        sys.exit(ExitCode.FORCED)
    if any(start.error for start in found.starts):
        sys.exit(ExitCode.INTERNAL)
