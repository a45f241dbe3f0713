"""Cluster files and hosts for tests."""

from __future__ import annotations

from pathlib import Path

from mlxfleet.common.cluster.agent import Facts, ModelState, UnitState
from mlxfleet.common.cluster.file import Cluster, load_cluster
from mlxfleet.common.cluster.units import KeeperState, ProcessId

EXAMPLE = Path(__file__).parents[3] / "deploy" / "cluster.example.toml"
VERSION = "1.2.3"
MODEL = "org/model"

SMALL = f"""\
[cluster]
name = "c"

[links]
insecure = true

[front]
host = "h1"

[front.settings]
allow_no_auth = true

[settings]
max_running = 8

[[nodes]]
name = "a"
host = "h1"
model = "{MODEL}"

[[nodes]]
name = "b"
host = "h2"
model = "{MODEL}"
"""


def load(folder: Path, text: str = SMALL) -> Cluster:
    """Write a cluster file, and load it."""
    path = folder / "cluster.toml"
    path.write_text(text)
    return load_cluster(path)


def facts(**changes: object) -> Facts:
    """A host on which nothing is wrong."""
    values: dict[str, object] = {
        "version": VERSION,
        "system": "Darwin",
        "machine": "arm64",
        "python": (3, 12),
        "cpus": 8,
        "memory_gb": 64.0,
        "free_disk_gb": 100.0,
        "ports_in_use": [],
        "models": {MODEL: ModelState(present=True, size_gb=2.0)},
        "units": {},
        "service": "launchd-daemon",
        "service_problem": None,
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def runs(
    fingerprint: str, state: str = "ready", members: dict[str, str] | None = None
) -> UnitState:
    """A unit that a host runs."""
    keeper = KeeperState(keeper=ProcessId(1, 1.0), child=ProcessId(2, 1.0), state=state)
    return UnitState(fingerprint, keeper, members or {})
