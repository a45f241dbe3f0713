"""What spoils a turn: memory pressure or the thermal state rising in it."""

from __future__ import annotations

from collections.abc import Sequence

from mlxfleet.bench.compare.baseline import Readings

LEVELS = {
    "memory_pressure": ("memory pressure", ("normal", "warning", "critical")),
    "thermal_state": ("thermal state", ("nominal", "fair", "serious", "critical")),
}
"""Fields of Telemetry with levels, what they are called, and the levels' names."""


def what_rose(readings: Sequence[Readings]) -> str:
    """What was higher in some reading than in the first one of its machine; "" if nothing was."""
    found = []
    for name in dict.fromkeys(name for reading in readings for name in reading):
        for field, (title, levels) in LEVELS.items():
            values = [getattr(reading[name], field) for reading in readings if name in reading]
            known = [value for value in values if value is not None]
            if known and max(known) > known[0]:
                place = f" of {name}" if name else ""
                found.append(f"{title}{place} rose to {levels[min(max(known), len(levels) - 1)]}")
    return "; ".join(found)
