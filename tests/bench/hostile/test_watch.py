"""Processes that die or grow are found."""

from __future__ import annotations

import pytest

from mlxfleet.bench.hostile import watch as module
from mlxfleet.bench.hostile.watch import Watch
from mlxfleet.bench.processes import ProcessUse

MB = 1_000_000


class Processes:
    """What the system says of a server's processes: id and size in MB by name."""

    def __init__(self, **found: tuple[int, int]) -> None:
        self.found = found

    def __call__(self, pid: int) -> list[ProcessUse]:
        return [ProcessUse(name, pid, size * MB, 0.0) for name, (pid, size) in self.found.items()]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """A router, a worker and a compiler that is none of ours."""
    found = Processes(router=(1, 50), worker=(2, 200), cc1=(3, 10))
    monkeypatch.setattr(module, "process_tree", found)
    return found


def test_a_server_that_stays_as_it_is_is_fine(processes: Processes) -> None:
    watch = Watch(0)
    watch.warm()
    del processes.found["cc1"]
    watch.look()
    assert not watch.died
    assert list(watch.grown(40, 300)) == []


def test_a_process_that_died_is_named_once(processes: Processes) -> None:
    watch = Watch(0)
    processes.found["router"] = (4, 50)
    watch.look()
    watch.look()
    del processes.found["worker"]
    watch.look()
    watch.look()
    assert list(watch.died) == [
        "router (process 1) has died and was started again",
        "worker (process 2) is gone",
    ]


def test_growth_and_size_are_found(processes: Processes) -> None:
    watch = Watch(0)
    watch.warm()
    processes.found.update(router=(1, 400), worker=(2, 900))
    watch.look()
    assert list(watch.grown(40, 300)) == [
        "router has grown from 50 to 400 MB",
        "router was as large as 400 MB",
    ]
