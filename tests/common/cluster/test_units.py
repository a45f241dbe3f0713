"""What a host remembers of its units."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from mlxfleet.common.cluster import units
from mlxfleet.common.cluster.keeper import backoff_s, how_it_ended
from mlxfleet.common.cluster.units import KeeperState, ProcessId, Unit

OLD = Unit(
    cluster="c",
    name="a",
    arguments=("node", "--max-running=1"),
    environment={"SECRET": "s"},
    files={"keys/a.secret": b"old"},
    service="keeper",
    stop_timeout_s=1.0,
    version="1",
    live_files={"keys/b.public": b"b"},
)
NEW = msgspec.structs.replace(OLD, arguments=("node",), files={"keys/a.secret": b"new"})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def test_what_is_installed_is_private_and_remembered() -> None:
    folder = units.install(OLD)
    record = units.recorded(folder)
    assert record is not None
    assert record.fingerprint == OLD.fingerprint
    assert record.unit.arguments == OLD.arguments
    assert b"old" not in (folder / "unit.json").read_bytes()
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_the_previous_unit_comes_back_with_its_files() -> None:
    folder = units.install(OLD)
    units.install(NEW)
    assert (folder / "files/keys/a.secret").read_bytes() == b"new"
    record = units.restore(folder)
    assert record is not None
    assert record.fingerprint == OLD.fingerprint
    assert (folder / "files/keys/a.secret").read_bytes() == b"old"
    assert units.restore(folder) is None


def test_live_files_and_members_change_without_a_restart() -> None:
    folder = units.install(OLD)
    changed = msgspec.structs.replace(OLD, members={"x": "h"}, live_files={"keys/c.public": b"c"})
    assert changed.fingerprint == OLD.fingerprint
    units.refresh(changed)
    assert {path.name for path in (folder / "files/keys").iterdir()} == {"a.secret", "c.public"}
    record = units.recorded(folder)
    assert record is not None
    assert record.unit.members == {"x": "h"}


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": ("router",)},
        {"environment": {}},
        {"files": {}},
        {"service": "systemd"},
        {"version": "2"},
    ],
)
def test_a_fingerprint_differs_if_a_restart_is_needed(change: dict[str, object]) -> None:
    assert msgspec.structs.replace(OLD, **change).fingerprint != OLD.fingerprint


def test_a_state_counts_only_while_its_keeper_lives() -> None:
    folder = units.install(OLD)
    mine = ProcessId.of(os.getpid())
    for keeper, alive in ((mine, True), (ProcessId(mine.pid, mine.started - 100), False)):
        state = KeeperState(keeper=keeper, child=None, state="ready")
        units.write_private(folder / "keeper.json", msgspec.json.encode(state))
        assert (units.keeper_state(folder) is not None) == alive


def test_pauses_between_starts_grow_and_end_growing() -> None:
    pauses = [backoff_s(failures) for failures in range(1, 40)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == 30.0


def test_ends_are_told_in_words() -> None:
    assert how_it_ended(-9) == "was killed by SIGKILL"
    assert how_it_ended(64) == "exited with 64"
