"""What is made of Linux's sensors."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from mlxfleet.common.telemetry.linux import linux_sensors, pressure_level, temperatures
from mlxfleet.common.telemetry.system import system_sensors


def psi(some: float, full: float) -> str:
    rest = "avg60=1.00 avg300=2.00 total=12345"
    return f"some avg10={some:.2f} {rest}\nfull avg10={full:.2f} {rest}\n"


@pytest.mark.parametrize(
    ("some", "full", "level"),
    [(0.0, 0.0, 0), (9.99, 0.0, 0), (10.0, 0.0, 1), (80.0, 9.0, 1), (80.0, 10.0, 2)],
)
def test_pressure_has_three_levels(some: float, full: float, level: int) -> None:
    assert pressure_level(psi(some, full)) == level


@pytest.mark.parametrize("text", ["", "nonsense\n", "some avg10=x avg60=0\n"])
def test_what_is_no_pressure_is_a_failure(text: str) -> None:
    with pytest.raises(ValueError, match=r"pressure|values to unpack|float"):
        pressure_level(text)


def test_the_hottest_place_counts() -> None:
    def places(*celsius: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(current=one) for one in celsius]

    chips = {"coretemp": places(50.0, 61.0), "amdgpu": places(70.0), "nvme": places(90.0)}
    assert temperatures(chips) == {"cpu_temperature_c": 61.0, "gpu_temperature_c": 70.0}
    assert temperatures({}) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine")
def test_this_machine_can_be_read() -> None:
    values = {}
    for sensor in linux_sensors():
        values.update(sensor.open()())
    assert values["memory_total_bytes"] >= values["memory_used_bytes"] > 0
    assert 0 <= values["cpu_utilization"] <= 1


def test_every_system_has_memory_and_swap() -> None:
    assert [sensor.name for sensor in system_sensors()] == ["cpu", "memory", "swap"]
