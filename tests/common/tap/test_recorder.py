"""The ring: what it keeps, what it forgets, and what readers see while it grows."""

from __future__ import annotations

import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.tap import recorder as recorder_module
from mlxfleet.common.tap.recorder import RECORD_BYTES, Record, Recorder

LIMIT = 2_000


def add(recorder: Recorder, frame: bytes) -> None:
    recorder.add(0.0, "sent", "link", b"", frame)


def numbers(records: list[Record]) -> list[int]:
    return [record[0] for record in records]


@given(sizes=st.lists(st.integers(0, LIMIT), max_size=60))
def test_it_keeps_the_newest_frames_that_fit(sizes: list[int]) -> None:
    recorder = Recorder(LIMIT)
    kept: list[tuple[int, int]] = []
    for number, size in enumerate(sizes, start=1):
        add(recorder, bytes(size))
        if size + RECORD_BYTES <= LIMIT:
            kept.append((number, size))
        while sum(size + RECORD_BYTES for _, size in kept) > LIMIT:
            del kept[0]
    assert [(record[0], len(record[5])) for record in recorder.all()] == kept
    assert recorder.recorded == len(sizes)


@given(sizes=st.lists(st.integers(0, LIMIT), max_size=60), after=st.integers(0, 70))
def test_a_reader_gets_what_is_new(sizes: list[int], after: int) -> None:
    recorder = Recorder(LIMIT)
    for size in sizes:
        add(recorder, bytes(size))
    expected = [number for number in numbers(recorder.all()) if number > after]
    assert numbers(recorder.after(after)) == expected


def test_no_look_takes_long() -> None:
    recorder = Recorder(100_000)
    for _ in range(20):
        add(recorder, b"")
    original, recorder_module.MOST_AT_ONCE = recorder_module.MOST_AT_ONCE, 5
    try:
        assert numbers(recorder.after(0)) == [16, 17, 18, 19, 20]
    finally:
        recorder_module.MOST_AT_ONCE = original


def test_frames_are_not_copied() -> None:
    recorder = Recorder(LIMIT)
    frame = bytes(100)
    add(recorder, frame)
    assert recorder.all()[0][5] is frame


def test_a_recorder_of_nothing_only_counts() -> None:
    recorder = Recorder(0)
    add(recorder, b"x")
    assert (recorder.recorded, recorder.all()) == (1, [])


def test_the_limit_is_about_the_memory_that_is_taken() -> None:
    frame, peer = bytes(64), b"scheduler-0:abcdefabcdef"
    record: Record = (2**40, 1.5e9, "sent", "nodes", peer, frame)
    own = (record, record[0], record[1], peer, frame)
    assert sum(map(sys.getsizeof, own)) <= len(frame) + RECORD_BYTES


def test_a_reader_in_another_thread_misses_nothing_that_is_there() -> None:
    recorder = Recorder(10_000_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(20_000):
            add(recorder, b"x")
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        writer = threading.Thread(target=write)
        writer.start()
        seen: list[int] = []
        while not done.is_set() or len(seen) < recorder.recorded:
            seen += numbers(recorder.after(len(seen)))
        writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == list(range(1, 20_001))
