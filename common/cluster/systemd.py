"""systemd user units on Linux."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SYSTEMCTL = ["systemctl", "--user"]
KIND = "systemd"


def unit_name(cluster: str, name: str) -> str:
    """systemd's name of a unit."""
    return f"mlxfleet-{cluster}-{name}.service"


def unit_path(unit: str) -> Path:
    """Where the user's systemd looks for it."""
    return Path("~/.config/systemd/user").expanduser() / unit


def unit_file(
    *, program: list[str], folder: Path, environment: Mapping[str, str], stop_timeout_s: float
) -> str:
    """A unit file that keeps `program`, a keeper, running."""
    variables = "".join(f"Environment={quoted(f'{k}={v}')}\n" for k, v in environment.items())
    return (
        "[Unit]\n"
        f"Description=mlxfleet {folder.parent.name} {folder.name}\n"
        "StartLimitIntervalSec=0\n\n"
        "[Service]\n"
        f"ExecStart={' '.join(quoted(part) for part in program)}\n"
        f"WorkingDirectory={str(folder).replace('%', '%%')}\n"
        f"{variables}"
        "Restart=always\n"
        "RestartSec=5\n"
        # The keeper passes SIGTERM on; its children stop in their own order.
        "KillMode=mixed\n"
        f"TimeoutStopSec={int(stop_timeout_s)}\n\n"
        "[Install]\n"
        "WantedBy=default.target\n"
    )


def quoted(text: str) -> str:
    """A word as systemd reads it back."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def start_commands(unit: str) -> list[list[str]]:
    """Read the unit file, start it now and at boot."""
    return [
        [*SYSTEMCTL, "daemon-reload"],
        [*SYSTEMCTL, "enable", unit],
        [*SYSTEMCTL, "restart", unit],
    ]


def stop_commands(unit: str) -> list[list[str]]:
    """Stop it, and do not start it at boot."""
    return [[*SYSTEMCTL, "disable", unit], [*SYSTEMCTL, "stop", unit]]


LINGER = ["loginctl", "enable-linger"]
"""Lets the user's units start at boot and outlive the login."""
