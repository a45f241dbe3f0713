"""Keeps one command running on a host: `python -m mlxfleet.common.cluster.keeper FOLDER`.

It starts what the folder's unit.json says, writes its output to a log of bounded size, says in
keeper.json how it goes, and starts it again with growing pauses when it ends. SIGTERM is passed
on; when the command has ended after that, so does the keeper.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from mlxfleet.common.cluster.bounded_log import BoundedLog
from mlxfleet.common.cluster.units import KeeperState, ProcessId, Unit, recorded, write_private

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
STEADY_S = 60.0
LINE_BYTES = 65_536
LEFTOVER_GRACE_S = 10.0
FORCED_GRACE_S = 8.0


class Keeper:
    """The command of one folder, started again and again."""

    def __init__(self, folder: Path, unit: Unit) -> None:
        self._folder = folder
        self._unit = unit
        self._log = BoundedLog(folder / "log")
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._wake_reader, self._wake_writer = os.pipe()
        self._state = KeeperState(keeper=ProcessId.of(os.getpid()), child=None, state="starting")

    def run(self) -> None:
        """Keep the command running until SIGTERM."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        failures = 0
        while not self._stopping:
            began = time.monotonic()
            ended = self._run_once()
            if self._stopping:
                break
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            pause_s = backoff_s(failures)
            self._say(child=None, state="waiting", last_exit=ended, announced="")
            self._note(f"it {ended}; starting it again in {pause_s:.1f} s")
            select.select([self._wake_reader], [], [], pause_s)
            self._say(state="starting", restarts=self._state.restarts + 1)
        self._note("stopped")
        self._log.close()
        (self._folder / "keeper.json").unlink(missing_ok=True)

    def _run_once(self) -> str:
        """One run of the command; how it ended."""
        child = subprocess.Popen(
            [sys.executable, "-m", "mlxfleet.common.cli", *self._unit.arguments],
            cwd=self._folder,
            env={**os.environ, **self._unit.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._child = child
        if self._stopping:
            child.terminate()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._say(child=ProcessId.of(child.pid), state="starting")
        assert child.stdout is not None
        with child.stdout as output:
            while line := output.readline(LINE_BYTES):
                self._log.write(line if line.endswith(b"\n") else line + b"\n")
                if line.startswith(b"ready "):
                    announced = line.decode(errors="replace").strip()
                    self._say(state="ready", announced=announced)
        code = child.wait()
        self._child = None
        return how_it_ended(code)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        os.write(self._wake_writer, b"x")
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def _say(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        write_private(self._folder / "keeper.json", msgspec.json.encode(self._state))

    def _note(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper {text}\n".encode())


def backoff_s(failures: int) -> float:
    """Pause before the next start; doubles with each end that came soon after the start."""
    return min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def end_leftover(folder: Path) -> None:
    """End what a keeper that was killed has left running."""
    try:
        before = msgspec.json.decode((folder / "keeper.json").read_bytes(), type=KeeperState)
    except (FileNotFoundError, msgspec.MsgspecError):
        return
    process = before.child.process() if before.child else None
    if process is not None:
        end_process(process, LEFTOVER_GRACE_S)


def end_process(process: psutil.Process, grace_s: float) -> None:
    """Stop a process: politely, then less so."""
    for number, wait_s in (
        (signal.SIGTERM, grace_s),
        (signal.SIGTERM, FORCED_GRACE_S),
        (signal.SIGKILL, FORCED_GRACE_S),
    ):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if not psutil.wait_procs([process], timeout=wait_s)[1]:
            return


def main() -> None:
    """Entry point."""
    folder = Path(sys.argv[1])
    record = recorded(folder)
    if record is None:
        sys.exit(f"there is no unit in {folder}")
    end_leftover(folder)
    Keeper(folder, record.unit).run()


if __name__ == "__main__":
    main()
