"""Faults of simulated nodes on command: a file that says what is wrong with which node now.

Each line is a node's name, or `*`, and what happens to it: `hang` (passes stand still, heartbeats
go on, as on a wedged GPU), `slow FACTOR`, or `exit` (the process is killed, once for each time that
the line appears). A line holds for as long as it is there; `#` begins a comment.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxfleet.common.slowdown import LEAST_FACTOR, MOST_FACTOR

log = logging.getLogger(__name__)

LOOK_S = 0.05


@dataclass(frozen=True)
class Fault:
    """What is wrong with a node; `slow` is how many times as long its passes take."""

    hang: bool = False
    exit: bool = False
    slow: float = 1.0


def parse_fault(words: list[str]) -> Fault:
    """Read what comes after the node's name; ValueError if it is no fault."""
    match words:
        case ["hang"]:
            return Fault(hang=True)
        case ["exit"]:
            return Fault(exit=True)
        case ["slow", factor] if LEAST_FACTOR <= float(factor) <= MOST_FACTOR:
            return Fault(slow=float(factor))
    raise ValueError("it is not NODE hang, NODE exit or NODE slow FACTOR")


def faults_of(text: str, node: str) -> Fault:
    """All faults of a node together. Lines that are none are logged and left out."""
    found = []
    for line in text.splitlines():
        name, *words = line.partition("#")[0].split() or [""]
        if name not in (node, "*"):
            continue
        try:
            found.append(parse_fault(words))
        except ValueError as error:
            log.warning("faults file: %r: %s", line, error)
    slow = 1.0
    for fault in found:
        slow *= fault.slow
    return Fault(hang=any(f.hang for f in found), exit=any(f.exit for f in found), slow=slow)


def kill_self() -> None:
    """Die as a process does that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """Watches the file for one node. `now` holds since the last look."""

    def __init__(
        self, file: Path | None, node: str, exit_process: Callable[[], None] = kill_self
    ) -> None:
        self._file = file
        self._node = node
        self._exit = exit_process
        self._read: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self.now = Fault()
        # Who has died of a line does so no more when it is back.
        self._look()

    def look(self, now_s: float) -> float:
        """Read the file if it is time and it has changed; the seconds until it is time again."""
        if self._file is None:
            return math.inf
        if now_s >= self._next_look:
            self._next_look = now_s + LOOK_S
            before = self.now
            self._look()
            if self.now.exit and not before.exit:
                log.warning("exit, as the faults file says")
                self._exit()
        return self._next_look - now_s

    def _look(self) -> None:
        if self._file is None:
            return
        try:
            state = self._file.stat()
            read = state.st_mtime_ns, state.st_size, state.st_ino
            if read != self._read:
                self.now = faults_of(self._file.read_text(errors="replace"), self._node)
                self._read = read
        except OSError:
            self.now, self._read = Fault(), None
