"""What processes a fleet has."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from mlxfleet.common import config
from mlxfleet.common.config import (
    FleetOptions,
    FrontOptions,
    MachineOptions,
    RouterOptions,
    RouterProcess,
    SchedulerOptions,
    SchedulerProcess,
    ServedModel,
    TelemetryProcess,
    WorkerOptions,
    WorkerProcess,
)
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.fleet_specs import FrontEnd, Launch, front_specs, make_specs, tcp_links


def launch(**fleet: int) -> Launch:
    return Launch(
        model=None,
        router=RouterOptions(),
        fleet=FleetOptions(**fleet),
        scheduler=SchedulerOptions(),
        worker=WorkerOptions(),
    )


def test_every_node_is_a_scheduler_and_its_worker(tmp_path: Path) -> None:
    specs = make_specs(launch(nodes=3), tmp_path, Path("model"), "model", ())
    names = [spec.name for spec in specs if spec.name.startswith(("scheduler", "worker"))]
    assert names == [f"{kind}-{i}" for i in range(3) for kind in ("scheduler", "worker")]
    for i in range(3):
        scheduler = config.load(SchedulerProcess, tmp_path / f"scheduler-{i}.json")
        worker = config.load(WorkerProcess, tmp_path / f"worker-{i}.json")
        assert scheduler.node == f"node-{i}"
        assert scheduler.worker_address == worker.scheduler_address
        assert worker.machine_share == pytest.approx(1 / 3)


def test_one_process_reads_the_sensors_for_all_nodes_unless_that_is_off(tmp_path: Path) -> None:
    specs = make_specs(launch(nodes=2), tmp_path, Path("model"), "model", ())
    [telemetry] = [spec for spec in specs if spec.name == "telemetry"]
    assert not telemetry.vital
    assert not telemetry.awaited
    assert all(spec.awaited for spec in specs if spec is not telemetry)
    told = config.load(TelemetryProcess, tmp_path / "telemetry.json")
    scheduler = config.load(SchedulerProcess, tmp_path / "scheduler-1.json")
    assert told.address == scheduler.telemetry_address != ""
    off = dataclasses.replace(launch(), machine=MachineOptions(telemetry="off"))
    assert "telemetry" not in [s.name for s in make_specs(off, tmp_path, Path("m"), "m", ())]
    assert config.load(SchedulerProcess, tmp_path / "scheduler-0.json").telemetry_address == ""


def test_nodes_have_addresses_of_their_own(tmp_path: Path) -> None:
    make_specs(launch(nodes=2), tmp_path, Path("model"), "model", ())
    orders = [config.load(SchedulerProcess, tmp_path / f"scheduler-{i}.json") for i in range(2)]
    assert orders[0].worker_address != orders[1].worker_address
    assert orders[0].router_address == orders[1].router_address


def test_a_front_end_is_served_under_the_names_that_it_gives(tmp_path: Path) -> None:
    served = ServedModel(name="m")
    front = FrontEnd(
        models=[(served, Path("m"))],
        router=RouterOptions(host="http.lan", allowed_hosts=("a.lan",)),
        options=FrontOptions(),
        links=tcp_links("0.0.0.0", "Nodes.lan", [8100, 8101], None),
    )
    front_specs(front, tmp_path)
    options = config.load(RouterProcess, tmp_path / "router.json").options
    assert set(options.allowed_hosts) == {"a.lan", "http.lan", "nodes.lan"}


def test_a_mac_is_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert launch().validated() == launch()
    with pytest.raises(ConfigError, match="--nodes"):
        launch(nodes=2).validated()


def test_who_can_tell_of_a_process_that_was_killed(tmp_path: Path) -> None:
    specs = make_specs(launch(nodes=2), tmp_path, Path("model"), "model", ())
    assert {spec.name: tuple(spec.witnesses) for spec in specs} == {
        "router": (),
        "tokenizer-0": ("router",),
        "detokenizer-0": ("router",),
        "telemetry": (),
        "scheduler-0": ("router", "worker-0"),
        "worker-0": ("scheduler-0",),
        "scheduler-1": ("router", "worker-1"),
        "worker-1": ("scheduler-1",),
    }
