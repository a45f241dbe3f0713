"""What machines say of themselves, on its way from sensors to routing; and when nobody says it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.fleet import Fleet, wait_for

SCRIPT = """
{"sensors": {"gpu_temperature_c": 50, "memory_pressure": 0}}
{"node": "node-1", "sensors": {"gpu_temperature_c": 97.5, "memory_pressure": 2}}
"""
SIM = ("--engine", "sim", "--nodes", "2", "--sim-step-ms", "3")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sim") / "faults"


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, faults: Path) -> Iterator[Fleet]:
    """Two simulated nodes, one of which is short of memory."""
    script = faults.with_name("telemetry")
    script.write_text(SCRIPT)
    files = ("--sim-faults", str(faults), "--telemetry", str(script))
    with Fleet("--model", str(tiny_model), *SIM, *files) as fleet:
        yield fleet


def node(fleet: Fleet, name: str) -> dict[str, Any]:
    """A node in /fleet."""
    nodes = json.loads(fleet.get("/fleet")[1])["nodes"]
    found: dict[str, Any] = next(node for node in nodes if node["name"] == name)
    return found


def ask(fleet: Fleet, number: int = 0, max_tokens: int = 30) -> int:
    """The status of a completion."""
    body = {"prompt": f"{number} times upon a time", "max_tokens": max_tokens}
    return fleet.post("/v1/completions", body)[0]


def test_sensors_are_seen_from_outside(fleet: Fleet) -> None:
    wait_for(lambda: node(fleet, "node-1")["telemetry"], "the telemetry of node-1")
    seen = node(fleet, "node-1")
    assert seen["telemetry"]["memory_pressure"] == 2
    assert seen["temperature_c"] == 97.5
    labels = {"node": "node-1", "model": fleet.client().models.list().data[0].id}
    assert fleet.metric("mlxfleet_machine_temperature_celsius", part="gpu", **labels) == 97.5
    assert fleet.metric("mlxfleet_machine_memory_pressure_level", **labels) == 2
    assert fleet.metric("mlxfleet_machine_telemetry_info", source="script", **labels) == 1


def test_who_is_short_of_memory_gets_little(fleet: Fleet) -> None:
    wait_for(lambda: node(fleet, "node-1")["weight"] == 0.25, "the weight of node-1")
    assert fleet.metric("mlxfleet_node_weight", node="node-1") == 0.25
    assert fleet.metric("mlxfleet_node_weight", node="node-0") == 1
    before = node(fleet, "node-0")["prefilled_tokens"], node(fleet, "node-1")["prefilled_tokens"]
    for number in range(10):
        assert ask(fleet, number) == 200
    assert node(fleet, "node-0")["prefilled_tokens"] > before[0]
    assert node(fleet, "node-1")["prefilled_tokens"] == before[1]


def test_slower_passes_are_noticed(fleet: Fleet, faults: Path) -> None:
    for number in range(4):
        assert ask(fleet, number) == 200
    assert fleet.metric("mlxfleet_node_slowdown_ratio", node="node-0") < 1.1
    faults.write_text("node-0 slow 3\n")

    def slow() -> bool:
        assert ask(fleet) == 200
        return fleet.metric("mlxfleet_node_slowdown_ratio", node="node-0") > 2.5

    wait_for(slow, "the slow-down of node-0")
    wait_for(lambda: node(fleet, "node-0")["weight"] == 1.0, "weights beside each other")
    faults.unlink()


def test_a_telemetry_process_that_hangs_or_dies_is_missed_and_nothing_more(fleet: Fleet) -> None:
    process = fleet.process_named("telemetry")
    process.suspend()
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda number: ask(fleet, number), range(4))) == {200}
    wait_for(lambda: node(fleet, "node-1")["telemetry"] is None, "telemetry to be stale")
    assert node(fleet, "node-1")["temperature_c"] is None
    assert fleet.metric("mlxfleet_machine_telemetry_age_seconds", node="node-1") > 5
    assert fleet.metric("mlxfleet_machine_temperature_celsius", node="node-1") == 0
    process.kill()
    wait_for(lambda: node(fleet, "node-1")["temperature_c"] == 97.5, "telemetry to be back")
    assert fleet.process_named("telemetry").pid != process.pid


def test_the_machines_own_sensors_are_read(tiny_fleet: Fleet) -> None:
    wait_for(lambda: tiny_fleet.metric("mlxfleet_machine_memory_bytes", kind="total"), "memory")
    wait_for(lambda: (node(tiny_fleet, "node-0")["telemetry"] or {}).get("source"), "/fleet")


def test_the_workers_memory_is_seen(tiny_fleet: Fleet) -> None:
    kinds = {k: tiny_fleet.metric("mlxfleet_mlx_memory_bytes", kind=k) for k in ("active", "peak")}
    assert kinds["peak"] >= kinds["active"] > 0
    assert tiny_fleet.metric("mlxfleet_process_memory_bytes", role="worker") > kinds["active"]


def test_off_is_off(tiny_model: Path) -> None:
    off = ("--telemetry", "off", "--no-node-weights")
    with Fleet("--model", str(tiny_model), "--engine", "sim", *off) as fleet:
        assert ask(fleet) == 200
        assert node(fleet, "node-0")["telemetry"] is None
        assert "mlxfleet_machine_memory_bytes{" not in fleet.exposition()
        assert "telemetry" not in fleet.output


def test_a_telemetry_process_that_dies_before_it_is_ready_does_not_end_the_start(
    tiny_model: Path,
) -> None:
    starting = Fleet("--model", str(tiny_model), *SIM)
    try:
        # Before it has its title, it is what was executed.
        parent = psutil.Process(starting.process.pid)
        wait_for(lambda: kill_child(parent, "mlxfleet.common.telemetry.main"), "its death")
        with starting as fleet:
            assert ask(fleet) == 200
            assert fleet.process_named("telemetry").is_running()
            assert "telemetry was killed by SIGKILL; starting it again" in fleet.output
    finally:
        if starting.process.poll() is None:
            starting.__exit__()


def kill_child(parent: psutil.Process, module: str) -> bool:
    """SIGKILL the child that runs a module, if it is there."""
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                child.kill()
                return True
    return False
