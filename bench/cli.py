"""`mlxfleet bench ...`."""

from __future__ import annotations

import cyclopts
from cyclopts import App

# Options of the servers are set by MLXFLEET_*, which are not meant for these commands.
app = App(
    name="bench",
    help="Measure servers.",
    config=cyclopts.config.Env("MLXFLEET_BENCH_", command=False),
)
app.command("mlxfleet.bench.serve_command:serve_command", name="serve")
app.command("mlxfleet.bench.report_command:report", name="report")
app.command("mlxfleet.bench.offline.command:offline", name="offline")
app.command("mlxfleet.bench.peers_command:peers", name="peers")
app.command("mlxfleet.bench.compare_command:compare_command", name="compare")
