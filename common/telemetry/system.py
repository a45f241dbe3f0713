"""What psutil knows on every system."""

from __future__ import annotations

import psutil

from mlxfleet.common.telemetry.sensors import Sensor, Values, plain


def system_sensors() -> list[Sensor]:
    """Utilization of the CPU, memory and swap."""
    return [
        plain("cpu", read_cpu),
        plain("memory", read_memory),
        plain("swap", lambda: {"swap_used_bytes": psutil.swap_memory().used}),
    ]


def read_cpu() -> Values:
    """Since the last reading."""
    return {"cpu_utilization": psutil.cpu_percent() / 100}


def read_memory() -> Values:
    """Main memory; only macOS says how much of it is wired."""
    memory = psutil.virtual_memory()
    values = {"memory_total_bytes": memory.total, "memory_used_bytes": memory.used}
    wired = getattr(memory, "wired", None)
    return values if wired is None else {**values, "wired_bytes": wired}
