"""What the machine is like before anything runs, and whether it is like that again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxfleet.common.messages import Telemetry

Readings = Mapping[str, Telemetry]
"""What sensors say, by node; "" is this machine."""

# An idle machine's clock may be anywhere in the range that was seen, or a little beside it.
FREQUENCY_TOLERANCE = 0.1
GIGA = 1e9


@dataclass(frozen=True)
class Range:
    """Least and most of what a sensor said."""

    low: float
    high: float


@dataclass(frozen=True)
class NodeBaseline:
    """A machine at rest; what it has no sensor for is None."""

    temperature_c: float | None
    cpu_hz: Range | None
    gpu_hz: Range | None
    thermal_state: int

    @classmethod
    def of(cls, samples: Sequence[Telemetry]) -> NodeBaseline:
        """Of samples taken at rest, at least one."""
        heat = [celsius for s in samples if (celsius := s.temperature_c) is not None]
        return cls(
            temperature_c=max(heat, default=None),
            cpu_hz=range_of([s.cpu_frequency_hz for s in samples]),
            gpu_hz=range_of([s.gpu_frequency_hz for s in samples]),
            thermal_state=max(s.thermal_state or 0 for s in samples),
        )

    def differences(self, now: Telemetry, margin_c: float) -> list[str]:
        """Why it is not yet as it was, with up to `margin_c` degrees more allowed."""
        found = []
        hot, cool = now.temperature_c, self.temperature_c
        if hot is not None and cool is not None and hot > cool + margin_c:
            found.append(f"{hot:.0f} °C instead of {cool:.0f}")
        clocks = {
            "CPU": (now.cpu_frequency_hz, self.cpu_hz),
            "GPU": (now.gpu_frequency_hz, self.gpu_hz),
        }
        for name, (hertz, range_hz) in clocks.items():
            if hertz is not None and range_hz is not None and not near(hertz, range_hz):
                limits = f"{range_hz.low / GIGA:.2f} to {range_hz.high / GIGA:.2f}"
                found.append(f"{name} at {hertz / GIGA:.2f} GHz instead of {limits}")
        if (now.thermal_state or 0) > self.thermal_state:
            found.append(f"thermal state {now.thermal_state} instead of {self.thermal_state}")
        return found


class Baseline:
    """All machines that have sensors, at rest."""

    def __init__(self, readings: Sequence[Readings]) -> None:
        names = dict.fromkeys(name for reading in readings for name in reading)
        self.nodes = {
            name: NodeBaseline.of([one[name] for one in readings if name in one]) for name in names
        }

    @property
    def has_temperature(self) -> bool:
        """Whether a machine's coolness can be seen at all."""
        return any(node.temperature_c is not None for node in self.nodes.values())

    def differences(self, readings: Readings, margin_c: float) -> list[str]:
        """Why not all machines are as they were; those not known then are not looked at."""
        return [
            f"{name}: {why}" if name else why
            for name, node in self.nodes.items()
            if name in readings
            for why in node.differences(readings[name], margin_c)
        ]


def range_of(values: Sequence[float | None]) -> Range | None:
    """Of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return Range(min(known), max(known)) if known else None


def near(value: float, limits: Range) -> bool:
    """Whether it is in the range, or beside it within the tolerance."""
    lowest, highest = 1 - FREQUENCY_TOLERANCE, 1 + FREQUENCY_TOLERANCE
    return limits.low * lowest <= value <= limits.high * highest
