"""Sensors that work, fail and hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlxfleet.common.messages import MachineSample, Telemetry
from mlxfleet.common.telemetry import sensors as sensors_module
from mlxfleet.common.telemetry.latest import STALE_AFTER_S, LatestTelemetry
from mlxfleet.common.telemetry.sensors import Sensor, Sensors, Values, plain

DEADLINE_S = 30.0


@contextmanager
def reading(*sensors: Sensor) -> Iterator[Sensors]:
    read = Sensors("test", sensors, period_s=0.001)
    yield read
    read.close()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def broken() -> Values:
    raise OSError("it is broken")


def test_what_sensors_say_is_put_together() -> None:
    heat = plain("heat", lambda: {"cpu_temperature_c": 60.0, "gpu_temperature_c": 70.0})
    with reading(heat, plain("swap", lambda: {"swap_used_bytes": 1})) as sensors:
        whole = Telemetry(
            source="test", cpu_temperature_c=60.0, gpu_temperature_c=70.0, swap_used_bytes=1
        )
        wait_for(lambda: sensors.sample() == whole)
    assert whole.temperature_c == 70.0
    assert Telemetry().temperature_c is None


def test_one_that_fails_is_counted_and_harms_no_other() -> None:
    with reading(plain("bad", broken), plain("good", lambda: {"thermal_state": 1})) as sensors:
        wait_for(lambda: sensors.sample().failures.get("bad", 0) > 3)
        assert sensors.sample().thermal_state == 1
        assert sensors.sample().failures.keys() == {"bad"}


def test_one_that_cannot_be_opened_is_tried_again() -> None:
    attempts = []

    def open_late() -> Callable[[], Values]:
        attempts.append(1)
        if len(attempts) < 3:
            raise ImportError("not yet")
        return lambda: {"memory_pressure": 2}

    with reading(Sensor("late", open_late)) as sensors:
        wait_for(lambda: sensors.sample().memory_pressure == 2)
        assert sensors.sample().failures == {"late": 2}


def test_one_that_stops_working_says_nothing_any_more() -> None:
    answers = iter([{"cpu_power_w": 5.0}])
    with reading(plain("short", lambda: next(answers, None) or broken())) as sensors:
        wait_for(lambda: sensors.sample().failures)
        assert sensors.sample().cpu_power_w is None


def test_one_that_hangs_is_counted_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors_module, "HUNG_AFTER_S", 0.2)
    over = threading.Event()

    def hang() -> Values:
        over.wait(DEADLINE_S)
        return {}

    with reading(plain("stuck", hang), plain("good", lambda: {"thermal_state": 3})) as sensors:
        wait_for(lambda: sensors.sample().failures.get("stuck", 0) > 1)
        assert sensors.sample().thermal_state == 3
        over.set()


def test_a_node_takes_its_own_sample_and_keeps_none_that_is_stale() -> None:
    clock = [0.0]
    latest = LatestTelemetry("node-1", lambda: clock[0])
    assert latest.fresh is None
    assert latest.age_s is None
    machine, own = Telemetry(thermal_state=0), Telemetry(thermal_state=2)
    latest.take(MachineSample(machine, {"node-2": own}))
    assert latest.fresh == machine
    latest.take(MachineSample(machine, {"node-1": own}))
    assert latest.fresh == own
    clock[0] = STALE_AFTER_S + 0.1
    assert latest.fresh is None
    assert latest.last == own
    assert latest.age_s == clock[0]
