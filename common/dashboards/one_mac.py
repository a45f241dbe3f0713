"""What a Mac does, above what may explain it; times are aligned."""

from __future__ import annotations

from mlxfleet.common.dashboards import states
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.panels import Panel, Query, graph, timeline
from mlxfleet.common.dashboards.promql import NODE, quantile, rate, select

TEMPERATURE = "mlxfleet_machine_temperature_celsius"
POWER = "mlxfleet_machine_power_watts"
FREQUENCY = "mlxfleet_machine_frequency_hertz"
UTILIZATION = "mlxfleet_machine_utilization_ratio"
MEMORY = "mlxfleet_machine_memory_bytes"
PRESSURE = "mlxfleet_machine_memory_pressure_level"
THERMAL = "mlxfleet_machine_thermal_state"
SLOWDOWN = "mlxfleet_node_slowdown_ratio"
WEIGHT = "mlxfleet_node_weight"
GENERATED = "mlxfleet_generated_tokens_total"
STEP = "mlxfleet_worker_step_seconds"

HOT = Limits(90, 100)
SLOW = Limits(1.1, 1.3)


def one_mac() -> list[Panel]:
    """What a Mac does, above what may explain it; times are aligned."""
    return [
        graph(
            "Output",
            "Tokens generated per second. If this falls, look right and down for what changed at"
            " the same time.",
            "short",
            Query(rate(GENERATED, NODE, by="node"), "tokens/s"),
            width=6,
        ),
        graph(
            "Time of a pass",
            "What passes of the worker take.",
            "s",
            *(Query(quantile(q, STEP, NODE, by="node"), f"p{100 * q:g}") for q in (0.5, 0.95)),
            width=6,
            limits=Limits(0.05, 0.2),
        ),
        graph(
            "Slow-down and weight",
            "How many times as long passes take as when the Mac was cool, and how much of the work"
            " the router gives it for that, 1 for the best of its model.",
            "none",
            Query(select(SLOWDOWN, NODE), "slow-down"),
            Query(select(WEIGHT, NODE), "weight"),
            width=6,
            limits=SLOW,
        ),
        timeline(
            "Thermal state",
            "How much macOS holds back because of heat.",
            states.THERMAL,
            Query(select(THERMAL, NODE), "thermal state"),
            width=6,
        ),
        graph(
            "Temperature",
            "Of cpu and gpu; near 100 °C the clock goes down.",
            "celsius",
            Query(select(TEMPERATURE, NODE), "{{part}}"),
            width=6,
            limits=HOT,
        ),
        graph(
            "Clock",
            "At which cpu and gpu run. A gpu clock that falls while it is busy is throttling.",
            "hertz",
            Query(select(FREQUENCY, NODE), "{{part}}"),
            width=6,
        ),
        graph(
            "Power",
            "What cpu, gpu and all of it together take.",
            "watt",
            Query(select(POWER, NODE), "{{part}}"),
            width=6,
        ),
        graph(
            "Utilization",
            "Share of time in which cpu and gpu are in use, by whatever runs there.",
            "percentunit",
            Query(select(UTILIZATION, NODE), "{{part}}"),
            width=6,
            top=1,
        ),
        graph(
            "Main memory",
            "All, in use, wired (which cannot be swapped: weights and caches of MLX), and swapped"
            " out.",
            "bytes",
            Query(select(MEMORY, NODE), "{{kind}}"),
            width=6,
            colors={"total": "text", "swap": "red"},
        ),
        graph(
            "Swap",
            "Swapped out. Growth while tokens/s falls: something else takes the memory.",
            "bytes",
            Query(select(MEMORY, NODE, 'kind="swap"'), "swap"),
            width=6,
            limits=Limits(1e9, 8e9),
        ),
        timeline(
            "Memory pressure",
            "How short of memory the system says it is.",
            states.PRESSURE,
            Query(select(PRESSURE, NODE), "memory pressure"),
            width=6,
        ),
        graph(
            "Memory of MLX",
            "active is in use, cache kept by MLX for reuse, peak the most that was in use.",
            "bytes",
            Query(select("mlxfleet_mlx_memory_bytes", NODE), "{{kind}}"),
            width=6,
        ),
    ]
