"""launchd's and systemd's files."""

from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from mlxfleet.common.cluster import launchd, systemd

DEPLOY = Path(__file__).parents[3] / "deploy"
PYTHON = "/Users/admin/mlxfleet/.venv/bin/python"
STATE = Path("/Users/admin/.mlxfleet/studio")


def example_plist(kind: str, name: str) -> bytes:
    """The property list of a unit of deploy/cluster.example.toml."""
    return launchd.plist(
        label=launchd.label("studio", name),
        program=[PYTHON, "-m", "mlxfleet.common.cluster.keeper", str(STATE / name)],
        folder=STATE / name,
        environment={"HOME": "/Users/admin", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        stop_timeout_s=45.0,
        user="admin" if kind == launchd.DAEMON else None,
    )


@pytest.mark.parametrize(
    ("file", "kind", "name"),
    [
        ("daemon.plist", launchd.DAEMON, "front"),
        ("agent.plist", launchd.AGENT, "studio-1"),
    ],
)
def test_the_plists_in_deploy_are_what_is_installed(file: str, kind: str, name: str) -> None:
    assert (DEPLOY / "launchd" / file).read_bytes() == example_plist(kind, name)


def test_a_daemon_starts_at_boot_and_after_a_failure_as_its_user() -> None:
    content = plistlib.loads(example_plist(launchd.DAEMON, "front"))
    assert content["RunAtLoad"] is True
    assert content["KeepAlive"] is True
    assert content["UserName"] == "admin"
    assert content["ExitTimeOut"] == 45
    assert content["ProgramArguments"][0] == PYTHON
    assert "UserName" not in plistlib.loads(example_plist(launchd.AGENT, "x"))


def test_launchd_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 501)
    label = launchd.label("studio", "front")
    install, bootstrap = launchd.install_commands(launchd.DAEMON, label, Path("/x.plist"), 501)
    target = "/Library/LaunchDaemons/org.mlxfleet.studio.front.plist"
    assert install == [
        *("sudo", "-n", "install", "-m", "644", "-o", "root", "-g", "wheel", "/x.plist", target)
    ]
    assert bootstrap == ["sudo", "-n", "launchctl", "bootstrap", "system", target]
    assert launchd.bootout_command(launchd.AGENT, label, 501) == [
        *("launchctl", "bootout", "gui/501/org.mlxfleet.studio.front")
    ]


def test_a_systemd_unit_survives_strange_words() -> None:
    text = systemd.unit_file(
        program=["/opt/my python", "-m", "x", "100%"],
        folder=Path("/home/u/.mlxfleet/c/front"),
        environment={"A": 'say "$HOME"'},
        stop_timeout_s=45.9,
    )
    assert 'ExecStart="/opt/my python" "-m" "x" "100%%"\n' in text
    assert 'Environment="A=say \\"$$HOME\\""\n' in text
    assert "Restart=always\n" in text
    assert "TimeoutStopSec=45\n" in text
    assert systemd.unit_name("c", "front") == "mlxfleet-c-front.service"
