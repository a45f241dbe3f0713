"""Every metric of a node's /metrics that is about its machine; all have the labels node and model.
There is none for what no sensor says."""

from __future__ import annotations

from mlxfleet.common.metric_family import counter, gauge
from mlxfleet.workers.metric_families import NODE

TEMPERATURE = gauge(
    "mlxfleet_machine_temperature_celsius",
    "Of the machine's cpu and gpu.",
    *NODE,
    "part",
)
POWER = gauge(
    "mlxfleet_machine_power_watts", "What cpu, gpu and all of it together take.", *NODE, "part"
)
FREQUENCY = gauge(
    "mlxfleet_machine_frequency_hertz",
    "At which the cpu runs, and the gpu when it does.",
    *NODE,
    "part",
)
UTILIZATION = gauge(
    "mlxfleet_machine_utilization_ratio", "Share of time in use, of cpu and gpu.", *NODE, "part"
)
MEMORY = gauge(
    "mlxfleet_machine_memory_bytes",
    "Main memory: total, used and wired (macOS only), and what of it is swapped out (swap).",
    *NODE,
    "kind",
)
PRESSURE = gauge(
    "mlxfleet_machine_memory_pressure_level",
    "How short of memory the machine is: 0 normal, 1 warning, 2 critical.",
    *NODE,
)
THERMAL = gauge(
    "mlxfleet_machine_thermal_state",
    "How much macOS holds back because of heat: 0 nominal, 1 fair, 2 serious, 3 critical.",
    *NODE,
)
SENSOR_FAILURES = counter(
    "mlxfleet_machine_sensor_failures_total",
    "Times that a sensor could not be read.",
    *NODE,
    "sensor",
)
TELEMETRY_AGE = gauge(
    "mlxfleet_machine_telemetry_age_seconds",
    "Since the last telemetry of the machine, whose figures are left out after 5 seconds.",
    *NODE,
)
TELEMETRY_INFO = gauge(
    "mlxfleet_machine_telemetry_info", "1; where telemetry comes from.", *NODE, "source"
)
