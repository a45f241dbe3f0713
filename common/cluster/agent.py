"""What `mlxfleet up` runs on a host over ssh: `python -m mlxfleet.common.cluster.agent VERB`.

An order comes as JSON on standard input, so nothing of it is in `ps`; news goes back as lines of
JSON on standard output, the last of them a Done or a Failed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from mlxfleet.common.cluster import services
from mlxfleet.common.cluster.bounded_log import followed, last_lines, newest_line
from mlxfleet.common.cluster.units import (
    KeeperState,
    Unit,
    install,
    keeper_state,
    recorded,
    refresh,
    restore,
    unit_folder,
)
from mlxfleet.common.errors import ExitCode, MlxfleetError

POLL_S = 0.05
REASON_LINES = 6
GB = 1e9
DEMO = "demo"


class Probe(Struct, tag="probe"):
    """What is this host, and what runs on it? `models` and TCP `ports` that will be needed."""

    cluster: str
    models: tuple[str, ...]
    ports: tuple[int, ...]
    service: str


class Fetch(Struct, tag="fetch"):
    """Have a model here."""

    model: str


class Apply(Struct, tag="apply"):
    """Run this unit in the place of what runs under its name."""

    unit: Unit


class Refresh(Struct, tag="refresh"):
    """Write what can change while this unit runs."""

    unit: Unit


class Await(Struct, tag="await"):
    """Wait until a unit says that it is ready, or ends before that."""

    cluster: str
    name: str
    timeout_s: float


class Revert(Struct, tag="revert"):
    """Run again what ran before the last Apply."""

    cluster: str
    name: str


class Stop(Struct, tag="stop"):
    """Stop a unit and forget it; its log stays."""

    cluster: str
    name: str


Order = Probe | Fetch | Apply | Refresh | Await | Revert | Stop


class Progress(Struct, tag="progress"):
    """Something to show meanwhile."""

    text: str


class Done(Struct, tag="done"):
    """The order is carried out; `result` depends on it."""

    result: msgspec.Raw = msgspec.Raw(b"null")


class Failed(Struct, tag="failed"):
    """It is not, and why."""

    reason: str
    exit_code: int


News = Progress | Done | Failed


class ModelState(Struct):
    """A model on a host. `size_gb`: of its weights, 0 if they are not here."""

    present: bool
    size_gb: float = 0.0
    problem: str = ""


class UnitState(Struct):
    """A unit on a host: what is recorded, and whether it runs."""

    fingerprint: str
    keeper: KeeperState | None
    members: dict[str, str]


class Facts(Struct):
    """The answer to Probe."""

    version: str
    system: str
    machine: str
    python: tuple[int, int]
    cpus: int
    memory_gb: float
    free_disk_gb: float
    ports_in_use: list[int]
    models: dict[str, ModelState]
    units: dict[str, UnitState]
    service: str
    service_problem: str | None


def obey(order: Order) -> object:
    """Carry out an order; MlxfleetError says why it cannot be."""
    match order:
        case Probe():
            return probe(order)
        case Fetch(model):
            return fetch(model)
        case Apply(unit):
            apply(unit)
        case Refresh(unit):
            refresh(unit)
        case Await(cluster, name, timeout_s):
            return await_ready(unit_folder(cluster, name), timeout_s)
        case Revert(cluster, name):
            return revert(unit_folder(cluster, name))
        case Stop(cluster, name):
            return stop(unit_folder(cluster, name))
    return None


def probe(order: Probe) -> Facts:
    """Look around."""
    home = Path("~").expanduser()
    return Facts(
        version=version("mlxfleet"),
        system=os.uname().sysname,
        machine=os.uname().machine,
        python=sys.version_info[:2],
        cpus=os.cpu_count() or 1,
        memory_gb=psutil.virtual_memory().total / GB,
        free_disk_gb=shutil.disk_usage(home).free / GB,
        ports_in_use=[port for port in order.ports if in_use(port)],
        models={model: model_state(model) for model in order.models},
        units=unit_states(order.cluster),
        service=services.chosen_service(order.service),
        service_problem=services.why_unusable(services.chosen_service(order.service)),
    )


def in_use(port: int) -> bool:
    """Whether a TCP port cannot be listened on."""
    with socket.socket() as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind(("", port))
        except OSError:
            return True
    return False


def model_state(model: str) -> ModelState:
    """Whether a model is on this host. Looks only; nothing is fetched."""
    if model == DEMO:
        from mlxfleet.common.demo_model import cached_folder, checked_dtype

        return folder_state(cached_folder(checked_dtype(None)))
    if not model.startswith(("/", "~")):
        return hub_state(model)
    folder = Path(model).expanduser()
    state = folder_state(folder)
    if not state.present:
        state.problem = f"there is no model folder {folder} on this host"
    return state


def folder_state(folder: Path) -> ModelState:
    """A model folder is one that has a configuration."""
    if not (folder / "config.json").exists():
        return ModelState(present=False)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelState(present=True, size_gb=size / GB)


def hub_state(hub_id: str) -> ModelState:
    """Whether the hub's cache holds a model whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from mlxfleet.common.model_files import WANTED_FILES

    try:
        folder = snapshot_download(hub_id, allow_patterns=WANTED_FILES, local_files_only=True)
    except HFValidationError as error:
        return ModelState(present=False, problem=str(error).splitlines()[0])
    except LocalEntryNotFoundError:
        return ModelState(present=False)
    return folder_state(Path(folder))


def fetch(model: str) -> str:
    """Download a model; the folder it is in."""
    from mlxfleet.common.model_files import resolve_model

    return str(resolve_model(None if model == DEMO else str(Path(model).expanduser()))[0])


def unit_states(cluster: str) -> dict[str, UnitState]:
    """All units of a cluster that this host has a record of."""
    found: dict[str, UnitState] = {}
    for path in unit_folder(cluster, "x").parent.glob("*/unit.json"):
        if record := recorded(path.parent):
            found[path.parent.name] = UnitState(
                record.fingerprint, keeper_state(path.parent), record.unit.members
            )
    return found


def apply(unit: Unit) -> None:
    """Stop what runs under the unit's name, and start the unit."""
    folder = unit_folder(unit.cluster, unit.name)
    if before := recorded(folder):
        services.stop(before.unit, folder, for_good=False)
    # A state that a keeper left behind would be taken for the new one's.
    forget_dead_state(folder)
    services.start(unit, install(unit))


def forget_dead_state(folder: Path) -> None:
    """Remove keeper.json unless its command still runs and the next keeper has to end it."""
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        state = msgspec.json.decode((folder / "keeper.json").read_bytes(), type=KeeperState)
        if state.child is None or state.child.process() is None:
            (folder / "keeper.json").unlink()


def await_ready(folder: Path, timeout_s: float) -> KeeperState:
    """Wait for a unit's ready line; MlxfleetError with its last words if it ends before that."""
    end = time.monotonic() + timeout_s
    shown = ""
    while time.monotonic() < end:
        state = keeper_state(folder)
        if state is not None and state.state == "ready":
            return state
        if state is not None and state.last_exit:
            raise MlxfleetError(f"it {state.last_exit}\n{last_words(folder)}")
        newest = newest_line(folder / "log")
        if newest != shown:
            shown = newest
            say(Progress(newest))
        time.sleep(POLL_S)
    raise MlxfleetError(f"it is not ready after {timeout_s:.0f} s\n{last_words(folder)}")


def last_words(folder: Path) -> str:
    """The end of a unit's log, or of what its keeper said."""
    lines = last_lines(folder / "log", REASON_LINES) or last_lines(folder / "keeper.out", 3)
    return "\n".join(f"  | {line}" for line in lines)


def revert(folder: Path) -> bool:
    """Run the previous unit again; False if there is none."""
    current = recorded(folder)
    if current is not None:
        services.stop(current.unit, folder, for_good=False)
    before = restore(folder)
    if before is None:
        return False
    forget_dead_state(folder)
    services.start(before.unit, folder)
    return True


def stop(folder: Path) -> bool:
    """Stop a unit and forget it; False if there is none."""
    record = recorded(folder)
    if record is None:
        return False
    services.stop(record.unit, folder, for_good=True)
    for name in ("unit.json", "previous.json", "keeper.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("files", "previous-files"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return True


def print_logs(cluster: str, wanted: str, count: int, follow: bool) -> None:
    """The last lines of the log of one unit, or of all; if wanted also those to come, until
    standard input closes. With several units, each line says whose it is."""
    units = [wanted] if wanted else log_names(cluster)
    paths = {name: unit_folder(cluster, name) / "log" for name in units}
    if not paths or not all(path.exists() for path in paths.values()):
        raise MlxfleetError(f"there is no log of {wanted or 'this cluster'} on this host")

    def show(name: str) -> None:
        path, prefix = paths[name], f"{name}: " if len(paths) > 1 else ""
        lines = followed(path, count, still_wanted) if follow else last_lines(path, count)
        for line in lines:
            print(f"{prefix}{line}", flush=True)

    with ThreadPoolExecutor(len(paths) if follow else 1) as pool:
        for shown in [pool.submit(show, name) for name in paths]:
            shown.result()


def still_wanted() -> bool:
    """Wait a moment; False when the other side of ssh has gone."""
    readable, _, _ = select.select([0], [], [], POLL_S)
    return not readable or os.read(0, 1024) != b""


def log_names(cluster: str) -> list[str]:
    """Units of a cluster that have a log on this host."""
    return sorted(path.parent.name for path in unit_folder(cluster, "x").parent.glob("*/log"))


def say(news: News) -> None:
    """Send a line to the other side."""
    sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Entry point."""
    match sys.argv[1:]:
        case ["logs", cluster, unit, count, mode]:
            try:
                print_logs(cluster, unit, int(count), mode == "follow")
            except (MlxfleetError, OSError) as error:
                sys.exit(str(error))
        case _:
            answer()


def answer() -> None:
    """Obey the order on standard input."""
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        say(Done(msgspec.Raw(msgspec.json.encode(obey(order)))))
    except (MlxfleetError, OSError, msgspec.MsgspecError) as error:
        code = getattr(error, "exit_code", ExitCode.INTERNAL)
        say(Failed(str(error) or type(error).__name__, int(code)))
        sys.exit(int(code))


if __name__ == "__main__":
    main()
