"""A unit is one command that a host keeps running: the front end or a node. Its state on the host
lives in `~/.mlxfleet/CLUSTER/UNIT/`:

    unit.json      what runs (0600), previous.json what ran before the last change
    files/         keys and key files (0600), previous-files/ those before the last change
    keeper.json    what the keeper says of it
    log, log.1     its output, bounded
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

STATE_FOLDER = "~/.mlxfleet"


class Unit(Struct, frozen=True, kw_only=True):
    """What a host is to keep running. `arguments` are `mlxfleet`'s and see the unit's folder as
    the current one. `members` are the nodes of a front end's cluster, with their hosts; they and
    `live_files`, which it reads again by itself, can change without a restart."""

    cluster: str
    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    files: dict[str, bytes]
    service: str
    stop_timeout_s: float
    version: str
    members: dict[str, str] = {}
    live_files: dict[str, bytes] = {}

    @property
    def fingerprint(self) -> str:
        """Differs whenever the unit has to be restarted to become this one."""
        relevant = msgspec.structs.replace(self, members={}, live_files={})
        return hashlib.sha256(msgspec.json.encode(relevant, order="deterministic")).hexdigest()


class Record(Struct, frozen=True):
    """A unit as its host remembers it: without the files' contents."""

    unit: Unit
    fingerprint: str


class ProcessId(Struct, frozen=True):
    """A process, told apart from a later one with the same number by when it started."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The running process of that number; psutil.NoSuchProcess if there is none."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


class KeeperState(Struct, frozen=True, kw_only=True):
    """What the keeper of a unit says. `state`: starting, ready, waiting (to start it again)."""

    keeper: ProcessId
    child: ProcessId | None
    state: str
    restarts: int = 0
    last_exit: str = ""
    announced: str = ""


def unit_folder(cluster: str, name: str) -> Path:
    """Where a unit's state is on this host."""
    return Path(STATE_FOLDER).expanduser() / cluster / name


def recorded(folder: Path) -> Record | None:
    """The unit that a folder holds, if it does."""
    try:
        return msgspec.json.decode((folder / "unit.json").read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def keeper_state(folder: Path) -> KeeperState | None:
    """What the keeper said last, if it still runs."""
    try:
        state = msgspec.json.decode((folder / "keeper.json").read_bytes(), type=KeeperState)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return state if state.keeper.process() else None


def write_private(path: Path, content: bytes) -> None:
    """Put a file in place in one go; only this user can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.rename(path)


def install(unit: Unit) -> Path:
    """Write a unit into its folder; what was there becomes the previous one."""
    folder = unit_folder(unit.cluster, unit.name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = recorded(folder)
    if before is not None and before.fingerprint != unit.fingerprint:
        shutil.rmtree(folder / "previous-files", ignore_errors=True)
        (folder / "files").rename(folder / "previous-files")
        (folder / "unit.json").rename(folder / "previous.json")
    shutil.rmtree(folder / "files", ignore_errors=True)
    (folder / "files").mkdir(mode=0o700)
    write_files(folder, unit.files)
    refresh(unit)
    return folder


def refresh(unit: Unit) -> None:
    """Write what can change while a unit runs. Live files that are gone are removed."""
    folder = unit_folder(unit.cluster, unit.name)
    before = recorded(folder)
    for name in before.unit.live_files if before else ():
        if name not in unit.live_files:
            (folder / "files" / name).unlink(missing_ok=True)
    write_files(folder, unit.live_files)
    stripped = msgspec.structs.replace(
        unit, files={}, live_files=dict.fromkeys(unit.live_files, b"")
    )
    write_private(folder / "unit.json", msgspec.json.encode(Record(stripped, unit.fingerprint)))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a unit's folder of files."""
    for name, content in files.items():
        path = folder / "files" / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, content)


def restore(folder: Path) -> Record | None:
    """Make the previous unit the current one again; None if there is none."""
    if not (folder / "previous.json").exists():
        return None
    shutil.rmtree(folder / "files", ignore_errors=True)
    (folder / "previous-files").rename(folder / "files")
    (folder / "previous.json").rename(folder / "unit.json")
    return recorded(folder)
