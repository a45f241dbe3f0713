"""Follows the recorders of a running fleet: asks every process again and again for what is new."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zmq

from mlxfleet.common.tap.server import PREFIX, Dumped, Follow, WriteDump
from mlxfleet.common.tap.stream import Frame, Process, unpack

# A process that has not answered by then is asked again, and meanwhile left behind.
ANSWER_S = 1.0
DUMP_S = 60.0
# A frame that is sent is recorded a little after the time that it has.
SETTLE_S = 0.01


class Source:
    """One process's recorder; frames are taken from `seen` on, None for what comes from now on."""

    def __init__(
        self, context: zmq.Context[Any], runtime: Path, process: str, seen: int | None
    ) -> None:
        self.process = process
        self.seen = seen
        self.lost = 0
        self.silent = False
        self._pid = 0
        self._context = context
        self._address = f"ipc://{runtime}/{PREFIX}{process}.sock"
        self.socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        return socket

    def ask(self) -> None:
        """Ask for what is new."""
        self.socket.send(msgspec.msgpack.encode(Follow(self.seen)))

    def give_up(self) -> None:
        """Forget a question without an answer: the process is gone, or hangs."""
        self.socket.close()
        self.socket = self._connect()
        self.silent = True

    def take(self) -> tuple[list[Frame], bool]:
        """New frames out of the answer that is there, and whether there are more to be asked for.
        StreamError if it is no answer."""
        self.silent = False
        entries = list(unpack(io.BytesIO(self.socket.recv())))
        frames = [entry for entry in entries if isinstance(entry, Frame)]
        [told] = [entry for entry in entries if isinstance(entry, Process)]
        if self._pid not in (0, told.pid):
            # It has started again, and counts from the beginning.
            self.seen = 0
            self._pid = told.pid
            return [], True
        self._pid = told.pid
        if self.seen is None:
            self.seen = told.recorded
            return [], False
        if frames:
            self.lost += frames[0].number - self.seen - 1
            self.seen = frames[-1].number
        else:
            self.lost += told.recorded - self.seen
            self.seen = told.recorded
        return frames, self.seen < told.recorded


class Follower:
    """Follows the processes of a fleet that are wanted, also those that start later."""

    def __init__(self, runtime: Path, wanted: Callable[[str], bool], *, from_start: bool) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._from_start = from_start
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sources: dict[str, Source] = {}
        self._early: list[Frame] = []

    def __enter__(self) -> Follower:
        for name in processes_of(self._runtime):
            self._add(name, 0 if self._from_start else None)
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._sources.values():
            source.socket.close()
        self._context.term()

    def _add(self, name: str, seen: int | None) -> None:
        if self._wanted(name) and name not in self._sources:
            self._sources[name] = Source(self._context, self._runtime, name, seen)

    def round(self) -> list[Frame]:
        """What is new in all processes, by time. What was recorded since about when the round began
        comes in the next one, because another process may have older frames."""
        began = time.time() - SETTLE_S
        for name in processes_of(self._runtime):
            self._add(name, 0)
        found = self._early + list(self._collect())
        found.sort(key=lambda frame: frame.time)
        self._early = [frame for frame in found if frame.time >= began]
        return found[: len(found) - len(self._early)]

    def rest(self) -> list[Frame]:
        """What the last round has left for another."""
        early, self._early = self._early, []
        return early

    def take_losses(self) -> Iterator[tuple[str, int]]:
        """How many frames of which process have not been seen since the last time."""
        for source in self._sources.values():
            if source.lost:
                yield source.process, source.lost
                source.lost = 0

    def silent(self) -> frozenset[str]:
        """Processes that do not answer: they hang, or are gone."""
        return frozenset(name for name, source in self._sources.items() if source.silent)

    def _collect(self) -> Iterator[Frame]:
        """Ask everyone until nobody has more, or does not answer."""
        end = time.monotonic() + ANSWER_S
        waiting = {source.socket: source for source in self._sources.values()}
        for source in waiting.values():
            source.ask()
        poller = zmq.Poller()
        for socket in waiting:
            poller.register(socket, zmq.POLLIN)
        while waiting and (left_s := end - time.monotonic()) > 0:
            for socket, _ in poller.poll(int(left_s * 1000) + 1):
                source = waiting[socket]
                frames, more = source.take()
                yield from frames
                if more:
                    source.ask()
                else:
                    poller.unregister(waiting.pop(socket).socket)
        for source in waiting.values():
            source.give_up()


def processes_of(runtime: Path) -> list[str]:
    """The processes of a fleet that have a recorder, by name."""
    found = [path.name for path in runtime.glob(f"{PREFIX}*.sock")]
    return sorted(name.removeprefix(PREFIX).removesuffix(".sock") for name in found)


def ask_for_dumps(runtime: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Dumped]]:
    """Have processes write what they have recorded; where, of each."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = {}
    with context:
        for name in filter(wanted, processes_of(runtime)):
            socket = sockets[name] = context.socket(zmq.REQ)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(f"ipc://{runtime}/{PREFIX}{name}.sock")
            socket.send(msgspec.msgpack.encode(WriteDump()))
        end = time.monotonic() + DUMP_S
        for name, socket in sockets.items():
            with socket:
                if socket.poll(max(0, int((end - time.monotonic()) * 1000))):
                    yield name, msgspec.msgpack.decode(socket.recv(), type=Dumped)
                else:
                    yield name, Dumped(error="it does not answer")
