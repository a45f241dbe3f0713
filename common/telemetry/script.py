"""Telemetry out of a file, for tests and for simulated fleets.

Each line is a JSON object: from `at_s` seconds on (0 if not given; since the telemetry process
started), `node` (`*`, the default, is every node) has these `sensors`, fields of
`messages.Telemetry`. Each holds until a later line says otherwise; null takes it away. Empty lines
and lines that begin with # say nothing.

    {"sensors": {"gpu_temperature_c": 50, "memory_pressure": 0}}
    {"at_s": 60, "node": "node-1", "sensors": {"gpu_temperature_c": 98, "thermal_state": 2}}

The file may be replaced at any time, and time goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.messages import MachineSample, Telemetry

log = logging.getLogger(__name__)

EVERY_NODE = "*"
SOURCE = "script"
MAX_BYTES = 1_000_000


class Line(Struct, forbid_unknown_fields=True):
    """What a line says."""

    sensors: dict[str, Any]
    at_s: float = 0.0
    node: str = EVERY_NODE


class Script:
    """What every node's sensors say, and when."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = sorted(lines, key=lambda line: line.at_s)

    def at(self, seconds: float) -> MachineSample:
        """The sample of a moment. Nodes that no line names have what is for all."""
        values: dict[str, dict[str, Any]] = {line.node: {} for line in self._lines}
        values.setdefault(EVERY_NODE, {})
        for line in self._lines:
            if line.at_s > seconds:
                break
            named = values if line.node == EVERY_NODE else (line.node,)
            for node in named:
                values[node].update(line.sensors)
        samples = {node: telemetry(sensors) for node, sensors in values.items()}
        return MachineSample(machine=samples.pop(EVERY_NODE), nodes=samples)


def telemetry(sensors: dict[str, Any]) -> Telemetry:
    """A sample; msgspec.ValidationError for a value of the wrong type."""
    return msgspec.convert({"source": SOURCE, **sensors}, Telemetry)


def read_script(path: Path) -> Script:
    """The script in a file; ConfigError says what is wrong, and in which line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"--telemetry: {path} is larger than {MAX_BYTES:,} bytes")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = f"it is not auto or off, and cannot be read as a script: {error}"
        raise ConfigError(f"--telemetry {path}: {why}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            lines.append(parse_line(line))
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"--telemetry: {path}, line {number}: {error}") from error
    return Script(lines)


def parse_line(text: str) -> Line:
    """One line; ValueError or msgspec.MsgspecError if it makes no sense."""
    line = msgspec.json.decode(text, type=Line)
    if not 0 <= line.at_s < math.inf:
        raise ValueError("at_s is not a number of seconds from 0 on")
    if unknown := sorted(line.sensors.keys() - set(Telemetry.__struct_fields__)):
        raise ValueError(f"there is no sensor {unknown[0]!r}")
    telemetry(line.sensors)
    return line


class ScriptFile:
    """Follows a script, and the file when it is replaced by another."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._started_s = now()
        self._script = Script([])
        self._read: tuple[int, int, int] | None = None

    def sample(self) -> MachineSample:
        """What every node's sensors say now. What cannot be read is logged, and what it said before
        goes on."""
        try:
            state = self._path.stat()
            read = state.st_mtime_ns, state.st_size, state.st_ino
        except OSError:
            read = None
        if read is not None and read != self._read:
            self._read = read
            try:
                self._script = read_script(self._path)
            except ConfigError as error:
                log.warning("%s", error)
        return self._script.at(self._now() - self._started_s)
