"""What processes simulated nodes are, and which options do not go together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common import config
from mlxfleet.common.config import (
    FleetOptions,
    RouterOptions,
    SchedulerOptions,
    SchedulerProcess,
    SimNodesProcess,
    SimOptions,
    SimWorkerProcess,
    WorkerOptions,
)
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.fleet_specs import Launch, make_specs


def launch(nodes: int = 1, worker: WorkerOptions | None = None, **sim: Any) -> Launch:
    return Launch(
        model=None,
        router=RouterOptions(),
        fleet=FleetOptions(nodes=nodes),
        scheduler=SchedulerOptions(),
        worker=worker or WorkerOptions(),
        sim=SimOptions(**{"engine": "sim", **sim}),
    )


def test_a_node_alone_is_a_scheduler_and_a_worker(tmp_path: Path) -> None:
    options = launch(2, WorkerOptions(max_context=100))
    specs = make_specs(options, tmp_path, Path("model"), "model", ())
    modules = {spec.name: spec.command[2] for spec in specs}
    for i in range(2):
        assert modules[f"scheduler-{i}"] == "mlxfleet.workers.scheduler_main"
        assert modules[f"worker-{i}"] == "mlxfleet.workers.sim_main"
        scheduler = config.load(SchedulerProcess, tmp_path / f"scheduler-{i}.json")
        worker = config.load(SimWorkerProcess, tmp_path / f"worker-{i}.json")
        assert scheduler.node == worker.node == f"node-{i}"
        assert scheduler.worker_address == worker.scheduler_address
        assert worker.scheduler_address.startswith("ipc://")
        assert worker.max_context == 100
    assert not any("LD_PRELOAD" in s.environment for s in specs if s.name.startswith("worker"))


def test_nodes_that_share_processes(tmp_path: Path) -> None:
    options = launch(5, sim_nodes_per_process=2)
    specs = make_specs(options, tmp_path, Path("model"), "model", ())
    names = [spec.name for spec in specs if spec.name.startswith("sim-nodes")]
    assert names == ["sim-nodes-0", "sim-nodes-1", "sim-nodes-2"]
    groups = [config.load(SimNodesProcess, tmp_path / f"{name}.json").nodes for name in names]
    assert [len(group) for group in groups] == [2, 2, 1]
    pairs = [pair for group in groups for pair in group]
    assert [scheduler.node for scheduler, _ in pairs] == [f"node-{i}" for i in range(5)]
    assert all(s.worker_address == w.scheduler_address for s, w in pairs)
    assert len({w.scheduler_address for _, w in pairs}) == 5
    assert pairs[0][0].worker_address.startswith("inproc://")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (launch(sim_slowdown="hot"), "--sim-slowdown: 'hot' is not"),
        (launch(worker=WorkerOptions(memory_gb=1.0)), "--memory-gb: only with --engine mlx"),
        (launch(worker=WorkerOptions(kv_bits=8)), "--kv-bits: only with --engine mlx"),
        (launch(engine="mlx", sim_step_ms=3.0), "--sim-step-ms: only with --engine sim"),
        (launch(engine="mlx", sim_faults=Path("f")), "--sim-faults: only with --engine sim"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: Launch, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{why}"):
        options.validated()


def test_options_of_both_engines_are_taken() -> None:
    options = launch(worker=WorkerOptions(max_context=100, trust_remote_code=True))
    assert options.validated() is options


def test_a_mac_can_simulate_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    launch(64).validated()
    with pytest.raises(ConfigError, match="--nodes"):
        launch(2, engine="mlx").validated()
