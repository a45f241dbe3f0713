"""Sensors of macOS, without sudo: `apple-smi` reads power and temperatures, the system itself says
how it feels. Not yet run on hardware; what is parsed is tested with stand-ins."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from mlxfleet.common.telemetry.sensors import Read, Sensor, Values
from mlxfleet.common.telemetry.system import system_sensors

# Over how long energy and GPU states are measured, in ms.
WINDOW_MS = 500
ENERGY, GPU_STATS, GPU_STATES = "Energy Model", "GPU Stats", "GPU Performance States"
GPU_CHANNEL = "GPUPH"
UNKNOWN = (0.0, 0.0)
NOT_RUNNING = ("IDLE", "DOWN", "OFF")
PRESSURE = "kern.memorystatus_vm_pressure_level"
# Of dispatch/source.h: DISPATCH_MEMORYPRESSURE_NORMAL, _WARN, _CRITICAL.
PRESSURE_LEVELS = {1: 0, 2: 1, 4: 2}
THERMAL = "com.apple.system.thermalpressurelevel"
# Of OSThermalNotification.h: nominal, moderate, heavy, trapping, sleeping; the last two are one.
MOST_THERMAL = 3


def macos_sensors() -> list[Sensor]:
    """All that a Mac with Apple silicon has."""
    return [
        *system_sensors(),
        Sensor("power", open_power),
        Sensor("temperature", open_temperatures),
        Sensor("memory_pressure", open_pressure),
        Sensor("thermal_state", open_thermal_state),
    ]


# --- apple-smi ------------------------------------------------------------------------------------


class ReportItem(Protocol):
    """What apple-smi gives of an IOReport channel."""

    group: str
    subgroup: str
    channel: str
    unit: str
    simple_value: int
    residencies: list[tuple[str, int]]


Watts = Callable[[int, str, int], float]
"""From an energy, its unit and a time in ms."""


def open_power() -> Read:
    """Energy counters and the GPU's states. apple-smi's own Sampler would also list processes with
    `ioreg` and `ps` at each reading, and hide failures."""
    from apple_smi.iokit import get_gpu_freq_table
    from apple_smi.ioreport import IOReportSampler, compute_watts

    sampler = IOReportSampler([(ENERGY, None), (GPU_STATS, GPU_STATES)])
    frequencies = get_gpu_freq_table()

    def read() -> Values:
        items = sampler.get_sample(WINDOW_MS)
        return {**power(items, compute_watts), **gpu_use(items, frequencies)}

    return read


def power(items: Iterable[ReportItem], watts: Watts) -> Values:
    """CPU and GPU power, in W. A Mac of two dies has a channel for each."""
    totals: dict[str, float] = {}
    for item in items:
        if item.group != ENERGY:
            continue
        if item.channel == "GPU Energy":
            field = "gpu_power_w"
        elif item.channel.endswith("CPU Energy"):
            field = "cpu_power_w"
        else:
            continue
        spent = watts(item.simple_value, item.unit, WINDOW_MS)
        totals[field] = totals.get(field, 0.0) + spent
    return totals


def gpu_use(items: Iterable[ReportItem], frequencies_mhz: Sequence[int]) -> Values:
    """The share of time in which the GPU ran, and at which frequency it did, from the time spent in
    each of its states; those in which it runs are in the order of the frequencies."""
    for item in items:
        if (item.group, item.subgroup, item.channel) != (GPU_STATS, GPU_STATES, GPU_CHANNEL):
            continue
        total = sum(time for _, time in item.residencies)
        running = [time for name, time in item.residencies if name not in NOT_RUNNING]
        if total <= 0:
            continue
        found = {"gpu_utilization": sum(running) / total}
        if sum(running) > 0 and frequencies_mhz:
            spent = zip(running, frequencies_mhz, strict=False)
            mean_mhz = sum(time * mhz for time, mhz in spent) / sum(running)
            found["gpu_frequency_hz"] = mean_mhz * 1e6
        return found
    return {}


def open_temperatures() -> Read:
    """Temperatures of CPU and GPU, and the power of the whole system."""
    from apple_smi.sensors import SMC, IOHIDSensors, get_smc_temperatures, get_system_power

    hid = IOHIDSensors()
    try:
        smc = SMC()
    except RuntimeError:
        return lambda: temperatures(UNKNOWN, hid.get_cpu_gpu_temps, 0.0)
    return lambda: temperatures(
        get_smc_temperatures(smc), hid.get_cpu_gpu_temps, get_system_power(smc)
    )


def temperatures(
    first: tuple[float, float], otherwise: Callable[[], tuple[float, float]], system_w: float
) -> Values:
    """What the SMC says of CPU and GPU in °C, and the HID sensors where that is 0, which is
    apple-smi's word for unknown. OSError if nobody knows anything."""
    cpu, gpu = first
    if cpu <= 0 or gpu <= 0:
        other_cpu, other_gpu = otherwise()
        cpu, gpu = (cpu if cpu > 0 else other_cpu), (gpu if gpu > 0 else other_gpu)
    known = {"cpu_temperature_c": cpu, "gpu_temperature_c": gpu, "total_power_w": system_w}
    if not (found := {field: value for field, value in known.items() if value > 0}):
        raise OSError("neither the SMC nor HID sensors say anything")
    return found


# --- the system -----------------------------------------------------------------------------------


def open_pressure(library: Any = None) -> Read:
    """The kernel's level of memory pressure."""
    system = library or ctypes.CDLL(None)
    return lambda: {"memory_pressure": PRESSURE_LEVELS[sysctl_int(system, PRESSURE)]}


def sysctl_int(system: Any, name: str) -> int:
    """A number of sysctl(3); OSError if there is none of that name."""
    value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if system.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0):
        raise OSError(f"there is no sysctl {name}")
    return value.value


def open_thermal_state(library: Any = None) -> Read:
    """How much the system holds back because of heat, as it publishes it with notify(3)."""
    system = library or ctypes.CDLL(None)
    token = ctypes.c_int()
    if status := system.notify_register_check(THERMAL.encode(), ctypes.byref(token)):
        raise OSError(f"cannot register for {THERMAL}: {status}")

    def read() -> Mapping[str, int]:
        level = ctypes.c_uint64()
        if status := system.notify_get_state(token, ctypes.byref(level)):
            raise OSError(f"cannot read {THERMAL}: {status}")
        return {"thermal_state": min(level.value, MOST_THERMAL)}

    return read
