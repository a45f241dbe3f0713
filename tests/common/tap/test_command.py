"""Which fleet is meant, and dumps that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from mlxfleet.common import runtime
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.messages import Release
from mlxfleet.common.tap.command import TapError, chosen_fleet, tap
from mlxfleet.common.tap.recorder import Record
from mlxfleet.common.tap.selection import Selection
from mlxfleet.common.tap.stream import Process, pack

ALIVE = os.getpid()
ALSO_ALIVE = os.getppid()
DEAD = 2**22 + 1


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runtime, "RUNTIME_PARENT", str(tmp_path))
    return tmp_path


def make_fleet(parent: Path, pid: int, *processes: str) -> Path:
    folder = parent / f"mlxfleet-{pid}-x"
    folder.mkdir()
    for name in processes:
        (folder / f"tap-{name}.sock").touch()
    return folder


def test_the_only_fleet_is_meant(parent: Path) -> None:
    folder = make_fleet(parent, ALIVE, "router")
    make_fleet(parent, DEAD, "router")
    assert chosen_fleet(None, Selection()) == folder
    assert chosen_fleet(ALIVE, Selection()) == folder


def test_of_several_one_has_to_be_chosen(parent: Path) -> None:
    make_fleet(parent, ALIVE, "router")
    folder = make_fleet(parent, ALSO_ALIVE, "router")
    with pytest.raises(ConfigError, match=f"--fleet {ALSO_ALIVE} ") as raised:
        chosen_fleet(None, Selection())
    assert f"--fleet {ALIVE} " in str(raised.value)
    assert chosen_fleet(ALSO_ALIVE, Selection()) == folder


@pytest.mark.parametrize("pid", [None, ALIVE])
def test_there_is_none(parent: Path, pid: int | None) -> None:
    make_fleet(parent, DEAD, "router")
    (parent / f"mlxfleet-{ALIVE}-file").touch()
    with pytest.raises((TapError, ConfigError), match="no fleet of this user"):
        chosen_fleet(pid, Selection())


def test_a_fleet_that_records_nothing(parent: Path) -> None:
    make_fleet(parent, ALIVE)
    with pytest.raises(TapError, match="--recorder-mb 0"):
        chosen_fleet(None, Selection())


def test_a_process_that_there_is_not(parent: Path) -> None:
    folder = make_fleet(parent, ALIVE, "router", "worker-0")
    assert chosen_fleet(None, Selection(processes=["nobody", "worker-*"])) == folder
    with pytest.raises(ConfigError, match="has no wroker-0; it has router, worker-0"):
        chosen_fleet(None, Selection(processes=["wroker-0"]))


def test_a_type_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="there is no tokns; there are admit, "):
        tap(type=["tokns"])


def dump(path: Path, process: str, *times: float) -> Path:
    told = Process(process=process, pid=1, reason="asked", time=0.0, recorded=9)
    frame = msgspec.msgpack.encode(Release(process, "1"))
    records: list[Record] = [
        (i, at, "sent", "nodes", b"", frame) for i, at in enumerate(times, start=1)
    ]
    path.write_bytes(b"".join(pack(told, records)))
    return path


def test_dumps_are_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [dump(tmp_path / "a", "router", 1.0, 3.0), dump(tmp_path / "b", "worker-0", 2.0)]
    tap(file=files, json=True)
    shown = capsys.readouterr()
    assert [json.loads(line)["time"] for line in shown.out.splitlines()] == [1.0, 2.0, 3.0]
    assert shown.err == ""
    tap("worker-*", file=files)
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "# router (process 1)" in shown.err


def test_a_damaged_dump_gives_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dump(tmp_path / "a", "router", 1.0, 2.0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TapError, match="damaged"):
        tap(file=[path], json=True)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_file_that_is_no_dump(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(TapError, match="not a dump"):
        tap(file=[path])
    with pytest.raises(TapError, match="No such file"):
        tap(file=[tmp_path / "absent"])
