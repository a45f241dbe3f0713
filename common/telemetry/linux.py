"""Sensors of Linux: what psutil has, and pressure stall information for memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlxfleet.common.telemetry.sensors import Sensor, Values, plain
from mlxfleet.common.telemetry.system import system_sensors

PRESSURE = Path("/proc/pressure/memory")
# Share of the last 10 s, in percent, in which some task waited for memory, or all did.
SOME_WARNING, FULL_CRITICAL = 10.0, 10.0
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")
GPU_CHIPS = ("amdgpu", "nouveau", "radeon", "gpu_thermal")


def linux_sensors() -> list[Sensor]:
    """All that this machine has; many virtual ones have no temperature."""
    found = [*system_sensors(), plain("frequency", read_frequency)]
    if hasattr(psutil, "sensors_temperatures"):
        found.append(plain("temperature", lambda: temperatures(psutil.sensors_temperatures())))
    if PRESSURE.exists():
        found.append(plain("memory_pressure", lambda: read_pressure(PRESSURE)))
    return found


def read_frequency() -> Values:
    """Mean over the cores."""
    frequency = psutil.cpu_freq()
    return {"cpu_frequency_hz": frequency.current * 1e6} if frequency else {}


def temperatures(chips: Mapping[str, Sequence[Any]]) -> Values:
    """The hottest place of CPU and GPU, out of what psutil.sensors_temperatures() gives."""
    found = {}
    for field, names in (("cpu_temperature_c", CPU_CHIPS), ("gpu_temperature_c", GPU_CHIPS)):
        places = [entry.current for name in names for entry in chips.get(name, ())]
        if places:
            found[field] = max(places)
    return found


def read_pressure(path: Path) -> Values:
    """The level of memory pressure, as macOS would call it."""
    return {"memory_pressure": pressure_level(path.read_text())}


def pressure_level(text: str) -> int:
    """0 (normal), 1 (warning) or 2 (critical) for a file of /proc/pressure; ValueError if it is
    none. https://docs.kernel.org/accounting/psi.html"""
    shares = {}
    for line in text.splitlines():
        kind, average, *_ = line.split()
        shares[kind] = float(average.removeprefix("avg10="))
    if "some" not in shares:
        raise ValueError(f"no pressure in {text!r}")
    if shares.get("full", 0.0) >= FULL_CRITICAL:
        return 2
    return int(shares["some"] >= SOME_WARNING)
