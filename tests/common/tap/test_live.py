"""Following recorders over their sockets, and having them write dumps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from mlxfleet.common.node_identity import STATE_ENV
from mlxfleet.common.tap import live, server, stream
from mlxfleet.common.tap.flight import Flight
from mlxfleet.common.tap.live import Follower, ask_for_dumps, processes_of
from mlxfleet.common.tap.recorder import RECORD_BYTES, Recorder
from mlxfleet.common.tap.server import Dumped, TapServer, tap_socket
from mlxfleet.common.tap.stream import Frame, unpack

LIMIT = 4_000
KEPT = LIMIT // (RECORD_BYTES + 1)


class Recorded:
    """A process, in this one: a recorder, and what answers taps."""

    def __init__(self, runtime: Path, name: str) -> None:
        self.recorder = Recorder(LIMIT)
        flight = Flight(name, self.recorder)
        self._server = TapServer(name, self.recorder, flight.dump, tap_socket(runtime, name))
        self._server.start()
        self._time = 0.0

    def add(self, count: int = 1) -> None:
        """Record frames of a long gone second, one after the other."""
        for _ in range(count):
            self._time += 1.0
            self.recorder.add(self._time, "sent", "nodes", b"", b"x")

    def close(self) -> None:
        """End."""
        self._server.close()


@pytest.fixture
def runtime() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def router(runtime: Path) -> Iterator[Recorded]:
    made = Recorded(runtime, "router")
    yield made
    made.close()


@pytest.fixture
def worker(runtime: Path) -> Iterator[Recorded]:
    made = Recorded(runtime, "worker-0")
    yield made
    made.close()


def anyone(_: str) -> bool:
    return True


def numbers(frames: list[Frame]) -> list[tuple[str, int]]:
    return [(frame.process, frame.number) for frame in frames]


def test_it_begins_with_what_is_new(runtime: Path, router: Recorded) -> None:
    router.add(2)
    with Follower(runtime, anyone, from_start=False) as follower:
        assert follower.round() == []
        router.add(2)
        assert numbers(follower.round()) == [("router", 3), ("router", 4)]
        assert follower.round() == []
        assert list(follower.take_losses()) == []


def test_it_begins_with_what_is_kept(runtime: Path, router: Recorded) -> None:
    router.add(2)
    with Follower(runtime, anyone, from_start=True) as follower:
        assert numbers(follower.round()) == [("router", 1), ("router", 2)]


def test_what_is_lost_is_counted(runtime: Path, router: Recorded) -> None:
    with Follower(runtime, anyone, from_start=True) as follower:
        router.add(1)
        follower.round()
        router.add(KEPT + 7)
        assert len(follower.round()) == KEPT
        assert list(follower.take_losses()) == [("router", 7)]
        assert list(follower.take_losses()) == []


def test_a_frame_that_was_too_large_to_keep_is_lost(runtime: Path, router: Recorded) -> None:
    with Follower(runtime, anyone, from_start=True) as follower:
        router.recorder.add(1.0, "sent", "nodes", b"", bytes(LIMIT))
        assert follower.round() == []
        assert list(follower.take_losses()) == [("router", 1)]


def test_processes_are_put_together_by_time(
    runtime: Path, router: Recorded, worker: Recorded
) -> None:
    for at, recorded in ((1.0, worker), (3.0, worker), (2.0, router)):
        recorded.recorder.add(at, "sent", "nodes", b"", b"x")
    with Follower(runtime, anyone, from_start=True) as follower:
        assert [frame.time for frame in follower.round()] == [1.0, 2.0, 3.0]


def test_only_those_that_are_wanted_are_asked(
    runtime: Path, router: Recorded, worker: Recorded
) -> None:
    router.add()
    worker.add()
    with Follower(runtime, "router".__eq__, from_start=True) as follower:
        assert numbers(follower.round()) == [("router", 1)]


def test_a_frame_of_this_moment_waits_for_older_ones(runtime: Path, router: Recorded) -> None:
    router.recorder.add(2**40, "sent", "nodes", b"", b"x")
    with Follower(runtime, anyone, from_start=True) as follower:
        assert follower.round() == []
        assert numbers(follower.rest()) == [("router", 1)]
        assert follower.rest() == []


def test_more_than_one_answer_holds(
    runtime: Path, router: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_BYTES", 200)
    router.add(KEPT)
    with Follower(runtime, anyone, from_start=True) as follower:
        assert len(follower.round()) == KEPT
        assert list(follower.take_losses()) == []


def test_a_process_that_starts_again_is_followed_from_its_start(
    runtime: Path, router: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.add(5)
    with Follower(runtime, anyone, from_start=False) as follower:
        follower.round()
        router.close()
        monkeypatch.setattr(stream.os, "getpid", lambda: 1)
        again = Recorded(runtime, "router")
        again.add(2)
        assert numbers(follower.round()) == [("router", 1), ("router", 2)]
        assert list(follower.take_losses()) == []
        again.close()


def test_one_that_does_not_answer_is_left_behind(
    runtime: Path, router: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ANSWER_S", 0.2)
    tap_socket(runtime, "worker-0").touch()
    router.add()
    with Follower(runtime, anyone, from_start=True) as follower:
        assert numbers(follower.round()) == [("router", 1)]
        assert follower.silent() == {"worker-0"}
        tap_socket(runtime, "worker-0").unlink()
        late = Recorded(runtime, "worker-0")
        late.add()
        monkeypatch.setattr(live, "ANSWER_S", 10.0)
        assert numbers(follower.round()) == [("worker-0", 1)]
        assert follower.silent() == frozenset()
        late.close()


def test_a_new_process_is_found(runtime: Path) -> None:
    with Follower(runtime, anyone, from_start=False) as follower:
        assert follower.round() == []
        late = Recorded(runtime, "worker-0")
        late.add()
        assert numbers(follower.round()) == [("worker-0", 1)]
        late.close()


def test_dumps_are_written_on_demand(
    runtime: Path,
    router: Recorded,
    worker: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(STATE_ENV, str(tmp_path))
    router.add(3)
    dumped = dict(ask_for_dumps(runtime, anyone))
    assert dumped["worker-0"] == Dumped()
    with Path(dumped["router"].path).open("rb") as file:
        process, *frames = unpack(file)
    assert isinstance(process, stream.Process)
    assert (process.process, process.recorded) == ("router", 3)
    assert [frame.number for frame in frames if isinstance(frame, Frame)] == [1, 2, 3]


def test_a_dump_that_cannot_be_written_says_so(
    runtime: Path, router: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_ENV, str(tmp_path / "file"))
    (tmp_path / "file").touch()
    router.add()
    [(name, dumped)] = ask_for_dumps(runtime, anyone)
    assert name == "router"
    assert "Not a directory" in dumped.error


def test_a_question_that_is_none_is_answered(runtime: Path, router: Recorded) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{tap_socket(runtime, 'router')}")
        for garbage in ([b"\xc1"], [b"a", b"b"], [b""]):
            socket.send_multipart(garbage)
            assert socket.poll(10_000)
            assert msgspec.msgpack.decode(socket.recv(), type=Dumped).error


def test_names_come_from_sockets(runtime: Path, router: Recorded, worker: Recorded) -> None:
    (runtime / "nodes.sock").touch()
    assert processes_of(runtime) == ["router", "worker-0"]
