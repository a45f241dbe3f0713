"""Macs: heat, power and memory beside tokens per second, so that a slow Mac explains itself."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from mlxfleet.common.dashboards import states
from mlxfleet.common.dashboards.board import Board
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.one_mac import one_mac
from mlxfleet.common.dashboards.panels import Column, Panel, Query, graph, overview
from mlxfleet.common.dashboards.promql import NODE, rate, select, share, total

TEMPERATURE = "mlxfleet_machine_temperature_celsius"
POWER = "mlxfleet_machine_power_watts"
FREQUENCY = "mlxfleet_machine_frequency_hertz"
MEMORY = "mlxfleet_machine_memory_bytes"
PRESSURE = "mlxfleet_machine_memory_pressure_level"
THERMAL = "mlxfleet_machine_thermal_state"
AGE = "mlxfleet_machine_telemetry_age_seconds"
SLOWDOWN = "mlxfleet_node_slowdown_ratio"
WEIGHT = "mlxfleet_node_weight"
GENERATED = "mlxfleet_generated_tokens_total"
HOT = Limits(90, 100)
SLOW = Limits(1.1, 1.3)
LIGHT = Limits(0.9, 0.5, falling=True)
STALE = Limits(5, 30)


def dashboard() -> Dashboard:
    """The dashboard."""
    board = Board("Macs", "Heat, power and memory of each Mac beside what it does.")
    board.row("All Macs", table(), *together())
    board.row("Sensors", *sensors())
    board.row("$node", *one_mac(), repeat="node")
    return board.dashboard


def table() -> Panel:
    """A row for each Mac."""
    by = "node"
    gpu = (NODE, 'part="gpu"')
    wired = total(MEMORY, NODE, 'kind="wired"', by=by)
    return overview(
        "Macs",
        "Each Mac now. Slow-down: how many times as long passes take as when the Mac was cool."
        " Weight: how much of the work the router gives it, 100% for the best of its model.",
        by,
        Column("Tokens/s", rate(GENERATED, NODE, by=by), "short"),
        Column("Slow-down", total(SLOWDOWN, NODE, by=by), "none", SLOW),
        Column("Weight", total(WEIGHT, NODE, by=by), "percentunit", LIGHT),
        Column("GPU", total(TEMPERATURE, *gpu, by=by), "celsius", HOT),
        Column("Thermal state", total(THERMAL, NODE, by=by), "short", states=states.THERMAL),
        Column("GPU clock", total(FREQUENCY, *gpu, by=by), "hertz"),
        Column("Power", total(POWER, NODE, 'part="total"', by=by), "watt"),
        Column("Memory pressure", total(PRESSURE, NODE, by=by), "short", states=states.PRESSURE),
        Column("Swap", total(MEMORY, NODE, 'kind="swap"', by=by), "bytes", Limits(1e9, 8e9)),
        Column("Wired", share(wired, total(MEMORY, NODE, 'kind="total"', by=by)), "percentunit"),
    )


def together() -> list[Panel]:
    """All Macs in one picture each."""
    return [
        graph(
            "Slow-down",
            "How many times as long passes take as passes of the same kind when the Mac was cool.",
            "none",
            Query(select(SLOWDOWN, NODE), "{{node}}"),
            limits=SLOW,
        ),
        graph(
            "GPU temperature",
            "Of each Mac that has such a sensor.",
            "celsius",
            Query(select(TEMPERATURE, NODE, 'part="gpu"'), "{{node}}"),
            limits=HOT,
        ),
        graph(
            "Output",
            "Tokens generated per second.",
            "short",
            Query(rate(GENERATED, NODE, by="node"), "{{node}}"),
        ),
    ]


def sensors() -> list[Panel]:
    """Whether telemetry itself is well."""
    failures = rate("mlxfleet_machine_sensor_failures_total", NODE, by="node, sensor")
    return [
        graph(
            "Age of telemetry",
            "Time since the last sample; sampled once a second. Figures are left out after 5 s.",
            "s",
            Query(select(AGE, NODE), "{{node}}"),
            limits=STALE,
        ),
        graph(
            "Sensors that cannot be read",
            "Failures per second.",
            "short",
            Query(failures, "{{node}} {{sensor}}"),
            limits=Limits(0.01),
        ),
        graph(
            "Sources",
            "Where telemetry comes from, by how many nodes.",
            "short",
            Query(
                f"count by (source) ({select('mlxfleet_machine_telemetry_info', NODE)})",
                "{{source}}",
            ),
        ),
    ]
