"""A machine is cool again when temperature, clocks and thermal state are as they were at rest."""

from __future__ import annotations

import pytest

from mlxfleet.bench.compare.baseline import Baseline
from mlxfleet.bench.compare.disturbance import what_rose
from mlxfleet.common.messages import Telemetry

REST = [
    Telemetry(cpu_temperature_c=40.0, gpu_temperature_c=38.0, cpu_frequency_hz=1.0e9),
    Telemetry(cpu_temperature_c=41.0, gpu_temperature_c=38.0, cpu_frequency_hz=1.4e9),
]


def left(now: Telemetry) -> list[str]:
    return Baseline([{"": one} for one in REST]).differences({"": now}, margin_c=2.0)


@pytest.mark.parametrize(
    "now",
    [
        Telemetry(cpu_temperature_c=43.0, cpu_frequency_hz=1.0e9),
        Telemetry(cpu_temperature_c=30.0, cpu_frequency_hz=1.5e9),
        Telemetry(),
    ],
)
def test_as_at_rest(now: Telemetry) -> None:
    assert left(now) == []


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Telemetry(cpu_temperature_c=43.5), "44 °C instead of 41"),
        (Telemetry(gpu_temperature_c=60.0), "60 °C instead of 41"),
        (Telemetry(cpu_frequency_hz=0.8e9), "CPU at 0.80 GHz instead of 1.00 to 1.40"),
        (Telemetry(cpu_frequency_hz=3.0e9), "CPU at 3.00 GHz instead of 1.00 to 1.40"),
        (Telemetry(thermal_state=1), "thermal state 1 instead of 0"),
    ],
)
def test_not_as_at_rest(now: Telemetry, why: str) -> None:
    assert left(now) == [why]


def test_only_a_sensor_of_temperature_tells_that_a_machine_is_cool() -> None:
    assert Baseline([{"": one} for one in REST]).has_temperature
    assert not Baseline([{"": Telemetry(cpu_frequency_hz=1e9)}]).has_temperature
    assert not Baseline([{}]).has_temperature


def test_machines_are_looked_at_one_by_one() -> None:
    baseline = Baseline([{"n1": Telemetry(gpu_temperature_c=40.0), "n2": Telemetry()}])
    now = {"n1": Telemetry(gpu_temperature_c=50.0), "new": Telemetry(gpu_temperature_c=90.0)}
    assert baseline.differences(now, 2.0) == ["n1: 50 °C instead of 40"]


def test_rising_pressure_or_thermal_state_is_seen() -> None:
    calm, tight = Telemetry(memory_pressure=0), Telemetry(memory_pressure=1)
    assert what_rose([{"": calm}, {"": tight}, {"": calm}]) == "memory pressure rose to warning"
    assert what_rose([{"n": Telemetry(thermal_state=0)}, {"n": Telemetry(thermal_state=2)}]) == (
        "thermal state of n rose to serious"
    )


def test_what_was_high_all_the_time_or_fell_has_not_risen() -> None:
    calm, tight = Telemetry(memory_pressure=0), Telemetry(memory_pressure=1)
    assert what_rose([{"": tight}, {"": tight}, {"": calm}]) == ""
    assert what_rose([{"a": calm}, {"b": tight}]) == ""
    assert what_rose([{}, {"": Telemetry()}]) == ""
