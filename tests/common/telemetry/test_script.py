"""Telemetry out of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.common.config import MachineOptions
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.telemetry.script import ScriptFile, read_script
from mlxfleet.common.telemetry.source import check_source, telemetry_address

TEXT = """
# A fleet that gets hot.
{"at_s": 60, "node": "n1", "sensors": {"gpu_temperature_c": 98, "failures": {"power": 3}}}
{"sensors": {"gpu_temperature_c": 50, "memory_pressure": 0}}
{"at_s": 90, "sensors": {"memory_pressure": null}}
{"at_s": 120, "node": "n1", "sensors": {"gpu_temperature_c": 51.5}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "script"
    path.write_text(text)
    return path


def test_values_hold_until_a_later_line(tmp_path: Path) -> None:
    script = read_script(write(tmp_path, TEXT))
    start, hot, later = script.at(0), script.at(60), script.at(1000)
    assert start.machine == start.nodes["n1"]
    assert (start.machine.gpu_temperature_c, start.machine.memory_pressure) == (50, 0)
    assert hot.machine.gpu_temperature_c == 50
    assert hot.nodes["n1"].gpu_temperature_c == 98
    assert hot.nodes["n1"].memory_pressure == 0
    assert hot.nodes["n1"].failures == {"power": 3}
    assert later.nodes["n1"].gpu_temperature_c == 51.5
    assert later.nodes["n1"].memory_pressure is later.machine.memory_pressure is None
    assert later.machine.source == "script"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"sensors": {"heat": 1}}', "there is no sensor 'heat'"),
        ('{"sensors": {"thermal_state": "hot"}}', r"Expected `int \| null`"),
        ('{"at_s": -1, "sensors": {}}', "at_s is not a number of seconds"),
        ('{"at": 1, "sensors": {}}', "unknown field `at`"),
        ('{"at_s": 1}', "missing required field `sensors`"),
        ("hot", "malformed"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(tmp_path: Path, line: str, why: str) -> None:
    path = write(tmp_path, '{"sensors": {}}\n' + line + "\n")
    with pytest.raises(ConfigError, match=f"--telemetry: .*script, line 2: .*{why}"):
        check_source(MachineOptions(telemetry=str(path)))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--telemetry .*none: it is not auto or off, and cannot"):
        check_source(MachineOptions(telemetry=str(tmp_path / "none")))
    (tmp_path / "large").write_text("#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        check_source(MachineOptions(telemetry=str(tmp_path / "large")))


def test_words_need_no_file(tmp_path: Path) -> None:
    for word in ("auto", "off"):
        check_source(MachineOptions(telemetry=word))
    assert telemetry_address(MachineOptions(telemetry="off"), tmp_path) == ""
    assert telemetry_address(MachineOptions(), tmp_path) == f"ipc://{tmp_path}/telemetry.sock"


def test_a_script_is_followed_and_replaced(tmp_path: Path) -> None:
    clock = [100.0]
    path = write(tmp_path, TEXT)
    script = ScriptFile(path, lambda: clock[0])
    assert script.sample().nodes["n1"].gpu_temperature_c == 50
    clock[0] += 60
    assert script.sample().nodes["n1"].gpu_temperature_c == 98
    write(tmp_path, '{"at_s": 60, "sensors": {"thermal_state": 3}}')
    assert script.sample().machine.thermal_state == 3
    write(tmp_path, "nonsense")
    assert script.sample().machine.thermal_state == 3
    path.unlink()
    assert script.sample().machine.thermal_state == 3
