"""What a node shows of its machine."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from mlxfleet.common.messages import MachineSample, Telemetry
from mlxfleet.common.telemetry.latest import LatestTelemetry
from mlxfleet.workers.machine_metrics import MachineCollector

LABELS = {"node": "n", "model": "m"}


def test_what_sensors_say_is_shown_and_nothing_else() -> None:
    clock = [0.0]
    telemetry = LatestTelemetry("n", lambda: clock[0])
    registry = CollectorRegistry()
    registry.register(MachineCollector(("n", "m"), telemetry))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"mlxfleet_machine_{name}", {**LABELS, **labels})

    assert value("telemetry_age_seconds") is None
    telemetry.take(
        MachineSample(
            Telemetry(
                source="test",
                gpu_temperature_c=80.5,
                total_power_w=90.0,
                cpu_utilization=0.0,
                wired_bytes=123,
                memory_pressure=0,
                failures={"power": 2},
            )
        )
    )
    clock[0] = 2.0
    assert value("temperature_celsius", part="gpu") == 80.5
    assert value("temperature_celsius", part="cpu") is None
    assert value("power_watts", part="total") == 90.0
    assert value("utilization_ratio", part="cpu") == 0.0
    assert value("memory_bytes", kind="wired") == 123
    assert value("memory_pressure_level") == 0
    assert value("thermal_state") is None
    assert value("sensor_failures_total", sensor="power") == 2
    assert value("telemetry_info", source="test") == 1
    assert value("telemetry_age_seconds") == 2.0
    clock[0] = 60.0
    assert value("temperature_celsius", part="gpu") is None
    assert value("memory_pressure_level") is None
    assert value("telemetry_age_seconds") == 60.0
    assert value("sensor_failures_total", sensor="power") == 2
