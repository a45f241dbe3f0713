"""Reading server-sent events out of the pieces in which they arrive."""

from __future__ import annotations


class EventReader:
    """Puts pieces of an event stream together; `data` of one line only, as all servers send it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events whose line this piece completes; comments are left out."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
