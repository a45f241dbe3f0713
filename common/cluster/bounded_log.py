"""A log of bounded size: a file and the one before it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT_BYTES = 10_000_000
LAST_BYTES = 4096


class BoundedLog:
    """Appends to a file; when it is full it becomes `NAME.1`, in the place of the one before."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._file = path.open("ab")

    def write(self, line: bytes) -> None:
        """Append, and let readers see it."""
        if self._file.tell() + len(line) > self._limit and self._file.tell():
            self._file.close()
            self._path.rename(older(self._path))
            self._file = self._path.open("ab")
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def older(path: Path) -> Path:
    """Where a full log goes."""
    return path.with_name(path.name + ".1")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, from the file before it too."""
    lines: deque[str] = deque(maxlen=count)
    for file in (older(path), path):
        if file.exists():
            with file.open(errors="replace") as opened:
                lines.extend(line.rstrip("\n") for line in opened)
    return list(lines)


def newest_line(path: Path) -> str:
    """The last line of a log, as far as it is in its last bytes; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            return file.read().decode(errors="replace").strip().rpartition("\n")[2]
    except FileNotFoundError:
        return ""


def followed(path: Path, count: int, pause: Callable[[], bool]) -> Iterator[str]:
    """The last lines of a log, and those that are written from then on, until `pause`, called when
    there is nothing new, says False. A full log is read to its end before the next is opened."""
    file = path.open(errors="replace")
    try:
        before = last_lines(older(path), count)
        yield from deque((*before, *(line.rstrip("\n") for line in file)), maxlen=count)
        while True:
            if line := file.readline():
                yield line.rstrip("\n")
            elif replaced(path, file.fileno()):
                rest = file.readlines()
                yield from (line.rstrip("\n") for line in rest)
                file.close()
                file = path.open(errors="replace")
            elif not pause():
                return
    finally:
        file.close()


def replaced(path: Path, descriptor: int) -> bool:
    """Whether a path is no longer the opened file."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino)
