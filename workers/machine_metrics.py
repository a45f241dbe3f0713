"""What a node shows of its machine at its /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.common.messages import Telemetry
from mlxfleet.common.metric_family import Family
from mlxfleet.common.telemetry.latest import LatestTelemetry
from mlxfleet.workers import machine_metric_families as families

Read = Callable[[Telemetry], float | None]

PARTS: list[tuple[Family, dict[str, Read]]] = [
    (
        families.TEMPERATURE,
        {"cpu": lambda t: t.cpu_temperature_c, "gpu": lambda t: t.gpu_temperature_c},
    ),
    (
        families.POWER,
        {
            "cpu": lambda t: t.cpu_power_w,
            "gpu": lambda t: t.gpu_power_w,
            "total": lambda t: t.total_power_w,
        },
    ),
    (
        families.FREQUENCY,
        {"cpu": lambda t: t.cpu_frequency_hz, "gpu": lambda t: t.gpu_frequency_hz},
    ),
    (
        families.UTILIZATION,
        {"cpu": lambda t: t.cpu_utilization, "gpu": lambda t: t.gpu_utilization},
    ),
    (
        families.MEMORY,
        {
            "total": lambda t: t.memory_total_bytes,
            "used": lambda t: t.memory_used_bytes,
            "wired": lambda t: t.wired_bytes,
            "swap": lambda t: t.swap_used_bytes,
        },
    ),
]
WHOLE: list[tuple[Family, Read]] = [
    (families.PRESSURE, lambda t: t.memory_pressure),
    (families.THERMAL, lambda t: t.thermal_state),
]


class MachineCollector(Collector):
    """The latest telemetry. What is too old is left out, but not how old it is, and how often
    sensors have failed."""

    def __init__(self, labels: tuple[str, str], telemetry: LatestTelemetry) -> None:
        self._labels = labels
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """One family after the other; an empty one where nothing is known."""
        labels, age_s, last = self._labels, self._telemetry.age_s, self._telemetry.last
        ages = [] if age_s is None else [(labels, age_s)]
        yield families.TELEMETRY_AGE.of(ages)
        sources = [((*labels, last.source), 1.0)] if last is not None else []
        yield families.TELEMETRY_INFO.of(sources)
        failures = last.failures if last is not None else {}
        yield families.SENSOR_FAILURES.of(((*labels, name), n) for name, n in failures.items())
        telemetry = self._telemetry.fresh or Telemetry()
        for family, parts in PARTS:
            values = {part: read(telemetry) for part, read in parts.items()}
            yield family.of(((*labels, part), v) for part, v in values.items() if v is not None)
        for family, read in WHOLE:
            value = read(telemetry)
            yield family.of([] if value is None else [(labels, value)])
