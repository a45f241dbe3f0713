"""The `mlxfleet bench` commands, each loaded when it is called."""

from __future__ import annotations

from cyclopts import App

app = App(
    name="bench", help="Measure OpenAI-compatible servers so that the figures can be trusted."
)
app.command("mlxfleet.bench.report_command:report", name="report")
