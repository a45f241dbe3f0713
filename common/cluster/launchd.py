"""launchd on macOS. Not yet run on hardware; tests compare what is generated with
deploy/launchd/.

A daemon starts at boot, before anybody logs in, which is what a Mac Studio in a rack needs; it
takes root to install one, so ssh's user is root or may use sudo without a password. An agent needs
no root, but runs only while its user is logged in at the screen (automatic login).
"""

from __future__ import annotations

import os
import plistlib
from collections.abc import Mapping
from pathlib import Path

AGENT, DAEMON = "launchd-agent", "launchd-daemon"
OPEN_FILES = 16_384
RESTART_PAUSE_S = 5


def label(cluster: str, name: str) -> str:
    """launchd's name of a unit."""
    return f"org.mlxfleet.{cluster}.{name}"


def plist(
    *,
    label: str,
    program: list[str],
    folder: Path,
    environment: Mapping[str, str],
    stop_timeout_s: float,
    user: str | None,
) -> bytes:
    """A property list that keeps `program`, a keeper, running from boot on. `user` is who runs it:
    for a daemon, which otherwise runs as root; None for an agent."""
    content: dict[str, object] = {
        "Label": label,
        "ProgramArguments": program,
        "WorkingDirectory": str(folder),
        "EnvironmentVariables": dict(environment),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": RESTART_PAUSE_S,
        "ExitTimeOut": int(stop_timeout_s),
        # Without it macOS may slow the process down as background work.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": str(folder / "keeper.out"),
        "StandardErrorPath": str(folder / "keeper.out"),
    }
    if user is not None:
        content["UserName"] = user
    return plistlib.dumps(content, sort_keys=True)


def plist_path(kind: str, label: str) -> Path:
    """Where launchd looks for it at boot, or at login."""
    folder = "/Library/LaunchDaemons" if kind == DAEMON else "~/Library/LaunchAgents"
    return Path(folder).expanduser() / f"{label}.plist"


def domain(kind: str, uid: int) -> str:
    """The launchd domain of a unit."""
    return "system" if kind == DAEMON else f"gui/{uid}"


def as_root(kind: str) -> list[str]:
    """What goes before a command that changes the domain."""
    return ["sudo", "-n"] if kind == DAEMON and os.getuid() != 0 else []


def install_commands(kind: str, label: str, written: Path, uid: int) -> list[list[str]]:
    """Put a written property list in its place and start it."""
    root, target = as_root(kind), str(plist_path(kind, label))
    owner = ["-o", "root", "-g", "wheel"] if kind == DAEMON else []
    return [
        [*root, "install", "-m", "644", *owner, str(written), target],
        [*root, "launchctl", "bootstrap", domain(kind, uid), target],
    ]


def bootout_command(kind: str, label: str, uid: int) -> list[str]:
    """Stop a unit: SIGTERM, and SIGKILL after ExitTimeOut."""
    return [*as_root(kind), "launchctl", "bootout", f"{domain(kind, uid)}/{label}"]


def print_command(kind: str, label: str, uid: int) -> list[str]:
    """Fails if launchd does not know the unit."""
    return ["launchctl", "print", f"{domain(kind, uid)}/{label}"]


def remove_command(kind: str, label: str) -> list[str]:
    """So that it does not start at the next boot."""
    return [*as_root(kind), "rm", "-f", str(plist_path(kind, label))]
