"""A command that is interrupted is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from mlxfleet.bench.interrupts import run_to_end
from tests.integration.fleet import wait_for

CHILD = """
import signal, sys, time
from pathlib import Path

def end(number, frame):
    # Longer than Popen would wait by itself.
    time.sleep(1)
    Path(sys.argv[1], "ended").touch()
    sys.exit(0)

signal.signal(signal.SIGINT, end)
Path(sys.argv[1], "began").touch()
while True:
    time.sleep(0.05)
"""
PARENT = """
import sys
from mlxfleet.bench.interrupts import run_to_end
run_to_end([sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""


def test_status_and_output_come_back() -> None:
    command = [sys.executable, "-c", "print('figures'); raise SystemExit(3)"]
    assert run_to_end(command, keep_output=True) == (3, "figures\n")


def test_after_ctrl_c_a_command_may_end_in_order(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, CHILD, str(tmp_path)]
    # A process group of its own, as a terminal gives a command.
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, process_group=0) as parent:
        wait_for((tmp_path / "began").exists, "the command")
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait() != 0
    assert (tmp_path / "ended").exists()
