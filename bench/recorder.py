"""Writes records to a file while they come."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mlxfleet.bench.records import Record, encode_line
from mlxfleet.common.errors import ConfigError


class Recorder:
    """A file of JSON lines, or nothing if there is no path. Use it as a context.

    It is opened with the first record, so that a run that does not begin leaves no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def write(self, record: Record) -> None:
        """Add a record; ConfigError if the file cannot be opened."""
        if self._path is None:
            return
        if self._file is None:
            try:
                self._file = self._path.open("wb")
            except OSError as error:
                raise ConfigError(f"--out: cannot write {self._path}: {error}") from error
        self._file.write(encode_line(record))

    def flush(self) -> None:
        """What was written survives if this process does not."""
        if self._file is not None:
            self._file.flush()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
