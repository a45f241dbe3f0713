"""The file of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.workers.sim_faults import LOOK_S, Fault, Faults, faults_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Fault()),
        ("node-1 hang", Fault(hang=True)),
        ("node-2 hang", Fault()),
        ("* slow 2\n# all\n\nnode-1 slow 1.5 # more", Fault(slow=3.0)),
        ("node-1 exit\nnode-1 hang", Fault(hang=True, exit=True)),
    ],
)
def test_lines_are_read(text: str, expected: Fault) -> None:
    assert faults_of(text, "node-1") == expected


@pytest.mark.parametrize(
    "line", ["node-1", "node-1 burn", "node-1 slow", "node-1 slow x", "node-1 slow 0", "* hang 3"]
)
def test_a_line_that_is_no_fault_is_left_out_and_said(
    line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert faults_of(f"{line}\nnode-1 slow 2", "node-1") == Fault(slow=2.0)
    assert line in caplog.text


def test_a_line_holds_as_long_as_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    faults = Faults(file, "node-1")
    assert faults.look(0.0) == LOOK_S
    file.write_text("node-1 hang")
    faults.look(LOOK_S / 2)
    assert not faults.now.hang
    faults.look(LOOK_S)
    assert faults.now.hang
    file.unlink()
    faults.look(2 * LOOK_S)
    assert not faults.now.hang


def test_without_a_file_there_is_nothing_to_look_at() -> None:
    assert Faults(None, "node-1").look(0.0) == float("inf")


def test_an_exit_happens_once_each_time_its_line_appears(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    exits: list[float] = []
    now = 0.0

    def look(text: str) -> None:
        nonlocal now
        now += LOOK_S
        file.write_text(text)
        faults.look(now)

    file.write_text("node-1 exit\n")
    faults = Faults(file, "node-1", lambda: exits.append(now))
    look("node-1 exit\nnode-2 hang\n")
    assert exits == []
    look("")
    look("node-1 exit\n")
    look("node-1 exit\n\n")
    assert exits == [pytest.approx(3 * LOOK_S)]
