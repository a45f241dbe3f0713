"""A process's flight recorder: what it crossed its borders with last, shown to taps, and written to
a file when the process crashes or somebody asks for it.

A fault that ends Python itself (SIGKILL, SIGSEGV, an abort in a GPU driver) leaves no time for
that. The parent then asks the processes at the other ends of the links (`witnesses` in
fleet_specs.py), whose recorders have the same frames.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

import zmq

from mlxfleet.common.tap.dumps import write_dump
from mlxfleet.common.tap.recorder import Recorder, install
from mlxfleet.common.tap.server import TapServer, tap_socket
from mlxfleet.common.tap.stream import describe, pack

log = logging.getLogger(__name__)

DUMP_SIGNAL = signal.SIGUSR1
MB = 1_000_000

Word = Literal["crash", "error", "asked"]


class Flight:
    """Writes dumps of a recorder."""

    def __init__(self, process: str, recorder: Recorder) -> None:
        self.process = process
        self.recorder = recorder
        self._writing = threading.Lock()

    def dump(self, word: Word, reason: str) -> Path | None:
        """Write what is kept; None if there is nothing. OSError if it cannot be written."""
        with self._writing:
            records = self.recorder.all()
            if not records:
                return None
            process = describe(self.process, reason, self.recorder.recorded)
            path = write_dump(self.process, word, pack(process, records))
        log.info("wrote the last %d frames to %s (%s)", len(records), path, reason)
        return path

    def try_dump(self, word: Word, reason: str) -> None:
        """Write what is kept, if that is possible."""
        try:
            self.dump(word, reason)
        except OSError as error:
            log.warning("cannot write the last frames: %s", error)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Write beside the process's work, which goes on. Once is enough at a time."""
        if not self._writing.locked():
            reason = f"asked by {signal.Signals(number).name}"
            threading.Thread(target=self.try_dump, args=("asked", reason), name="dump").start()


_flight: Flight | None = None


def start(process: str, runtime: Path, limit_mb: int) -> None:
    """Record from now on, at most so many MB, and be open to taps in the fleet's private folder."""
    global _flight
    if limit_mb == 0:
        signal.signal(DUMP_SIGNAL, signal.SIG_IGN)
        return
    _flight = Flight(process, Recorder(limit_mb * MB))
    install(_flight.recorder)
    signal.signal(DUMP_SIGNAL, _flight.on_signal)
    sys.excepthook = die_of_exception
    try:
        TapServer(process, _flight.recorder, _flight.dump, tap_socket(runtime, process)).start()
    except zmq.ZMQError as error:
        log.warning("taps cannot reach %s: %s", process, error)


def save(word: Word, reason: str) -> None:
    """Write the last frames of a process that is about to end."""
    if _flight is not None:
        _flight.try_dump(word, reason)


def save_crash(error: BaseException) -> None:
    """Write the last frames of a process that ends because nobody has handled an exception. What
    the exception says is in the log; it may have parts of prompts."""
    save("crash", f"unhandled {type(error).__name__}")


def die_of_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What nobody has handled ends the process: say so, and save the frames."""
    sys.__excepthook__(kind, error, trace)
    save_crash(error)
