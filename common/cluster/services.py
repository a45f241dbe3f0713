"""What keeps a unit's keeper running on this host: launchd, systemd, or nothing but the keeper."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from pathlib import Path

from mlxfleet.common.cluster import launchd, systemd
from mlxfleet.common.cluster.keeper import end_process
from mlxfleet.common.cluster.units import Unit, keeper_state
from mlxfleet.common.errors import MlxfleetError

KEEPER = "keeper"
COMMAND_TIMEOUT_S = 60.0
GONE_POLL_S = 0.05
STOP_SLACK_S = 20.0
INHERITED = ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR", "HF_HOME", "MLXFLEET_CACHE")
"""Variables of the ssh session that a service is given too."""


class ServiceError(MlxfleetError):
    """launchd or systemd does not do what it is asked."""


def chosen_service(wanted: str) -> str:
    """The service manager to use; `auto` takes the host's own if it works."""
    if wanted != "auto":
        return wanted
    if sys.platform == "darwin":
        return launchd.DAEMON
    return systemd.KIND if succeeds([*systemd.SYSTEMCTL, "show-environment"]) else KEEPER


def why_unusable(kind: str) -> str | None:
    """What keeps a service manager from being used here, or None."""
    on_mac = sys.platform == "darwin"
    if kind == launchd.DAEMON and on_mac and os.getuid() and not succeeds(["sudo", "-n", "true"]):
        return (
            "a launchd daemon needs root: let ssh's user use sudo without a password, or set"
            f' service = "{launchd.AGENT}" and switch automatic login on'
        )
    if kind.startswith("launchd") != on_mac and kind != KEEPER:
        return f'there is no {kind} here; set service = "auto"'
    if kind == systemd.KIND and not succeeds([*systemd.SYSTEMCTL, "show-environment"]):
        return 'systemctl --user does not work here; set service = "keeper"'
    return None


def start(unit: Unit, folder: Path) -> None:
    """Start a unit's keeper, which must not run; ServiceError says why it cannot be."""
    program = [sys.executable, "-m", "mlxfleet.common.cluster.keeper", str(folder)]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    kind = chosen_service(unit.service)
    if kind == KEEPER:
        start_detached(program, folder)
    elif kind == systemd.KIND:
        name = systemd.unit_name(unit.cluster, unit.name)
        path = systemd.unit_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            systemd.unit_file(
                program=program,
                folder=folder,
                environment=environment,
                stop_timeout_s=unit.stop_timeout_s,
            )
        )
        succeeds(systemd.LINGER)
        for command in systemd.start_commands(name):
            run(command)
    else:
        label = launchd.label(unit.cluster, unit.name)
        user = getpass.getuser() if kind == launchd.DAEMON else None
        written = folder / "launchd.plist"
        written.write_bytes(
            launchd.plist(
                label=label,
                program=program,
                folder=folder,
                environment=environment,
                stop_timeout_s=unit.stop_timeout_s,
                user=user,
            )
        )
        launchd.plist_path(kind, label).parent.mkdir(parents=True, exist_ok=True)
        for command in launchd.install_commands(kind, label, written, os.getuid()):
            run(command)


def start_detached(program: list[str], folder: Path) -> None:
    """Start a keeper that outlives the ssh session."""
    with (folder / "keeper.out").open("ab") as output:
        subprocess.Popen(
            program,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def stop(unit: Unit, folder: Path, *, for_good: bool) -> None:
    """Stop a unit's keeper and wait until it is gone. `for_good`: it is not to start at boot."""
    kind = chosen_service(unit.service)
    if kind == systemd.KIND:
        for command in systemd.stop_commands(systemd.unit_name(unit.cluster, unit.name)):
            succeeds(command, unit.stop_timeout_s + STOP_SLACK_S)
    elif kind != KEEPER:
        label = launchd.label(unit.cluster, unit.name)
        succeeds(launchd.bootout_command(kind, label, os.getuid()), unit.stop_timeout_s)
        end = time.monotonic() + unit.stop_timeout_s
        while time.monotonic() < end and succeeds(launchd.print_command(kind, label, os.getuid())):
            time.sleep(GONE_POLL_S)
        if for_good:
            run(launchd.remove_command(kind, label))
    # With launchd and systemd it is gone by now, unless it was started without them.
    state = keeper_state(folder)
    if state is None:
        return
    child = state.child.process() if state.child else None
    if keeper := state.keeper.process():
        end_process(keeper, unit.stop_timeout_s)
    if child is not None and child.is_running():
        end_process(child, 1.0)


def run(command: list[str]) -> None:
    """Run a command; ServiceError with what it says if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ServiceError(f"{' '.join(command)} exited with {done.returncode}: {said}")


def succeeds(command: list[str], timeout_s: float = COMMAND_TIMEOUT_S) -> bool:
    """Whether a command can be run and exits with 0."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
