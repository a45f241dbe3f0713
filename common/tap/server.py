"""Shows a process's recorder to taps on the same machine, from a thread of its own.

Taps ask; nothing is sent to who does not. So a process has no cost without taps, and a slow tap
only loses frames, which it sees by their numbers. A tap is answered even while the process hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import zmq
from msgspec import Struct

from mlxfleet.common.tap.recorder import Recorder
from mlxfleet.common.tap.stream import describe, pack

PREFIX = "tap-"
# An answer is made while the process waits for the interpreter's lock.
ANSWER_BYTES = 256 * 1024


class Follow(Struct, tag="follow", frozen=True):
    """Asks for frames after this number, oldest first, as a stream; None asks for no frames, only
    which number is the last."""

    after: int | None


class WriteDump(Struct, tag="write_dump", frozen=True):
    """Asks for the frames to be written to a file."""


class Dumped(Struct, tag="dumped", frozen=True):
    """The file that was written, "" if there were no frames; or why it could not be."""

    path: str = ""
    error: str = ""


Ask = Follow | WriteDump


def tap_socket(runtime: Path, process: str) -> Path:
    """Where a process answers taps."""
    return runtime / f"{PREFIX}{process}.sock"


class TapServer(threading.Thread):
    """Answers taps until the process ends. ZMQError if its socket's path is too long."""

    def __init__(
        self,
        process: str,
        recorder: Recorder,
        dump: Callable[[Literal["asked"], str], Path | None],
        path: Path,
    ) -> None:
        super().__init__(name="tap", daemon=True)
        self._process = process
        self._recorder = recorder
        self._dump = dump
        self._decoder = msgspec.msgpack.Decoder(Ask)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        # It is there if the process before this one was killed.
        path.unlink(missing_ok=True)
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError:
            self._context.destroy()
            raise

    def run(self) -> None:
        """Answer one tap after the other."""
        with self._socket:
            while True:
                try:
                    self._socket.send(self._answer(b"".join(self._socket.recv_multipart())))
                except zmq.ContextTerminated:
                    return

    def close(self) -> None:
        """Answer no more."""
        self._context.term()
        self.join()

    def _answer(self, ask: bytes) -> bytes:
        try:
            asked = self._decoder.decode(ask)
            if isinstance(asked, Follow):
                return self._frames(asked.after)
            path = self._dump("asked", "asked by mlxfleet tap")
            return msgspec.msgpack.encode(Dumped(str(path or "")))
        except (msgspec.MsgspecError, OSError) as error:
            return msgspec.msgpack.encode(Dumped(error=str(error)))

    def _frames(self, after: int | None) -> bytes:
        recorded = self._recorder.recorded
        records = [] if after is None else self._recorder.after(after)
        answer = bytearray()
        for part in pack(describe(self._process, "followed", recorded), records):
            answer += part
            if len(answer) > ANSWER_BYTES:
                break
        return bytes(answer)
