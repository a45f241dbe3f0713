"""What is made of a Mac's sensors, with stand-ins for apple-smi and the system's library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mlxfleet.common.telemetry.macos import (
    gpu_use,
    open_pressure,
    open_thermal_state,
    power,
    temperatures,
)


@dataclass
class Item:
    """A channel of IOReport."""

    group: str
    channel: str
    subgroup: str = ""
    unit: str = "mJ"
    simple_value: int = 0
    residencies: list[tuple[str, int]] = field(default_factory=list)


def watts(energy: int, unit: str, duration_ms: int) -> float:
    return energy / duration_ms if unit == "mJ" else energy / duration_ms / 1e6


def gpu(residencies: list[tuple[str, int]]) -> Item:
    return Item("GPU Stats", "GPUPH", "GPU Performance States", residencies=residencies)


def test_power_is_the_sum_over_dies() -> None:
    items = [
        Item("Energy Model", "GPU Energy", unit="nJ", simple_value=10_000_000_000),
        Item("Energy Model", "DIE_0_CPU Energy", simple_value=1000),
        Item("Energy Model", "DIE_1_CPU Energy", simple_value=500),
        Item("Energy Model", "ANE0", simple_value=7),
        gpu([("P1", 5)]),
    ]
    assert power(items, watts) == {"gpu_power_w": 20.0, "cpu_power_w": 3.0}
    assert power([], watts) == {}


def test_the_gpus_frequency_is_that_at_which_it_runs() -> None:
    states = [("OFF", 50), ("P1", 10), ("P2", 40)]
    found = gpu_use([Item("Energy Model", "GPU Energy"), gpu(states)], [400, 1400])
    assert found == {"gpu_utilization": 0.5, "gpu_frequency_hz": pytest.approx(1.2e9)}


def test_a_gpu_that_rests_has_no_frequency() -> None:
    assert gpu_use([gpu([("IDLE", 100), ("P1", 0)])], [400]) == {"gpu_utilization": 0.0}
    assert gpu_use([gpu([("IDLE", 0)])], [400]) == {}
    assert gpu_use([], [400]) == {}


def test_what_the_smc_does_not_know_hid_sensors_may() -> None:
    both = temperatures((60.0, 70.0), lambda: (1.0, 1.0), 30.0)
    assert both == {"cpu_temperature_c": 60.0, "gpu_temperature_c": 70.0, "total_power_w": 30.0}
    one = temperatures((60.0, 0.0), lambda: (1.0, 55.0), 0.0)
    assert one == {"cpu_temperature_c": 60.0, "gpu_temperature_c": 55.0}
    with pytest.raises(OSError, match="neither"):
        temperatures((0.0, 0.0), lambda: (0.0, 0.0), 0.0)


class System:
    """The system's library: writes through pointers as C does."""

    def __init__(self, value: int, status: int = 0) -> None:
        self.value = value
        self.status = status
        self.asked: list[bytes] = []

    def sysctlbyname(self, name: bytes, value: Any, *_: object) -> int:
        self.asked.append(name)
        value._obj.value = self.value
        return self.status

    def notify_register_check(self, name: bytes, token: Any) -> int:
        self.asked.append(name)
        token._obj.value = 7
        return 0

    def notify_get_state(self, token: Any, state: Any) -> int:
        assert token.value == 7
        state._obj.value = self.value
        return self.status


@pytest.mark.parametrize(("kernel", "level"), [(1, 0), (2, 1), (4, 2)])
def test_memory_pressure_of_the_kernel(kernel: int, level: int) -> None:
    system = System(kernel)
    assert open_pressure(system)() == {"memory_pressure": level}
    assert system.asked == [b"kern.memorystatus_vm_pressure_level"]


@pytest.mark.parametrize(("value", "status", "error"), [(3, 0, KeyError), (1, -1, OSError)])
def test_a_pressure_that_makes_no_sense_is_a_failure(
    value: int, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_pressure(System(value, status))()


@pytest.mark.parametrize(("level", "state"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_thermal_levels(level: int, state: int) -> None:
    system = System(level)
    assert open_thermal_state(system)() == {"thermal_state": state}
    assert system.asked == [b"com.apple.system.thermalpressurelevel"]


def test_a_thermal_level_that_cannot_be_read_is_a_failure() -> None:
    with pytest.raises(OSError, match="cannot read"):
        open_thermal_state(System(0, status=1))()
