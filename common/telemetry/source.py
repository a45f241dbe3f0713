"""Where telemetry comes from, by the word that the user gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from mlxfleet.common.config import MachineOptions
from mlxfleet.common.messages import MachineSample
from mlxfleet.common.telemetry.linux import linux_sensors
from mlxfleet.common.telemetry.macos import macos_sensors
from mlxfleet.common.telemetry.script import ScriptFile, read_script
from mlxfleet.common.telemetry.sensors import Sensors

AUTO, OFF = "auto", "off"


class Source(Protocol):
    """What is sampled."""

    def sample(self) -> MachineSample:
        """The latest, without waiting."""


class MachineSource:
    """The sensors of this machine, which all of its nodes share."""

    def __init__(self) -> None:
        if sys.platform == "darwin":
            self._sensors = Sensors("apple-smi", macos_sensors())
        else:
            self._sensors = Sensors("psutil", linux_sensors())

    def sample(self) -> MachineSample:
        """The latest."""
        return MachineSample(machine=self._sensors.sample())


def open_source(word: str) -> Source:
    """What `auto` or a file stands for."""
    return MachineSource() if word == AUTO else ScriptFile(Path(word))


def check_source(options: MachineOptions) -> None:
    """ConfigError for a script that cannot be read."""
    if options.telemetry not in (AUTO, OFF):
        read_script(Path(options.telemetry))


def telemetry_address(options: MachineOptions, runtime: Path) -> str:
    """Where the process of a machine publishes; "" if there is none."""
    return "" if options.telemetry == OFF else f"ipc://{runtime}/telemetry.sock"
