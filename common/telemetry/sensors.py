"""A machine's sensors, each read on its own by a thread of its own, so that one that fails or hangs
takes only its own figures away."""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from mlxfleet.common.messages import Telemetry

log = logging.getLogger(__name__)

PERIOD_S = 1.0
# A sensor that has not answered for so long counts as one that failed.
HUNG_AFTER_S = 5.0

Values = Mapping[str, Any]
"""Fields of Telemetry; none where there is nothing to be read."""
Read = Callable[[], Values]

# What libraries that ask the system are known to raise.
SENSOR_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    ctypes.ArgumentError,
    psutil.Error,
)


@dataclass(frozen=True)
class Sensor:
    """Something that can be read. `open` prepares it, and gives what reads it."""

    name: str
    open: Callable[[], Read]


def plain(name: str, read: Read) -> Sensor:
    """A sensor that needs no preparation."""
    return Sensor(name, lambda: read)


def finite(value: object) -> bool:
    """Whether a reading can be sent; the values of some sensors are not numbers at times."""
    return not isinstance(value, float) or math.isfinite(value)


class SensorThread:
    """Reads a sensor once in `period_s`, for as long as the process lives."""

    def __init__(self, sensor: Sensor, period_s: float = PERIOD_S) -> None:
        self.name = sensor.name
        self.failures = 0
        self._sensor = sensor
        self._period_s = period_s
        self._values: Values = {}
        self._answered_s = time.monotonic()
        self._stopping = threading.Event()
        threading.Thread(target=self._run, name=sensor.name, daemon=True).start()

    def values(self, now: float) -> Values:
        """What it said last; nothing, and one failure more, if that is long ago."""
        if now - self._answered_s > HUNG_AFTER_S:
            self._failed("it does not answer")
            return {}
        return self._values

    def stop(self) -> None:
        """Read no more. A thread that hangs is left behind."""
        self._stopping.set()

    def _run(self) -> None:
        read: Read | None = None
        while not self._stopping.is_set():
            try:
                read = read or self._sensor.open()
                self._values = read()
            except SENSOR_ERRORS as error:
                self._values = {}
                self._failed(f"{type(error).__name__}: {error}")
            self._answered_s = time.monotonic()
            self._stopping.wait(self._period_s)

    def _failed(self, why: str) -> None:
        if not self.failures:
            log.warning("cannot read %s: %s; further failures are only counted", self.name, why)
        self.failures += 1


class Sensors:
    """All sensors of this machine; `source` says what is asked."""

    def __init__(
        self, source: str, sensors: Sequence[Sensor], *, period_s: float = PERIOD_S
    ) -> None:
        self._source = source
        self._threads = [SensorThread(sensor, period_s) for sensor in sensors]

    def sample(self) -> Telemetry:
        """What they say now, without waiting for any."""
        now = time.monotonic()
        values: dict[str, Any] = {}
        for thread in self._threads:
            values.update(thread.values(now))
        failures = {thread.name: thread.failures for thread in self._threads if thread.failures}
        readable = {name: value for name, value in values.items() if finite(value)}
        return Telemetry(source=self._source, failures=failures, **readable)

    def close(self) -> None:
        """Stop reading."""
        for thread in self._threads:
            thread.stop()
