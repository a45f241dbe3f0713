"""The simulated nodes of a fleet: what each of their processes is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlxfleet.common.config import (
    MachineOptions,
    ObserveOptions,
    SchedulerOptions,
    SchedulerProcess,
    SimNodesProcess,
    SimOptions,
    SimWorkerProcess,
    WorkerOptions,
)
from mlxfleet.common.curve import CurveClient
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.messages import NodeInfo
from mlxfleet.common.metrics_address import metrics_host, metrics_port
from mlxfleet.common.slowdown import parse_slowdown
from mlxfleet.common.telemetry.source import telemetry_address

MLX_ONLY = ("memory_gb", "prefix_cache_gb", "blas_threads", "kv_bits", "quantize")


def check_sim(sim: SimOptions, worker: WorkerOptions) -> None:
    """ConfigError for a curve that cannot be read, and for options of the engine that is not
    used."""
    parse_slowdown(sim.sim_slowdown)
    if sim.engine == "sim":
        given = changed(worker, MLX_ONLY)
        instead = "only with --engine mlx; the simulated engine has --sim-kv-tokens and others"
    else:
        given = changed(sim, [f.name for f in dataclasses.fields(sim) if f.name != "engine"])
        instead = "only with --engine sim"
    if given is not None:
        raise ConfigError(f"--{given.replace('_', '-')}: {instead}")


def changed(options: SimOptions | WorkerOptions, names: list[str] | tuple[str, ...]) -> str | None:
    """The first of these options that is not at its default."""
    defaults = type(options)()
    return next((n for n in names if getattr(options, n) != getattr(defaults, n)), None)


def sim_orders(
    options: SimOptions,
    *,
    names: Sequence[str],
    runtime: Path,
    model_dir: Path,
    router_address: str,
    scheduler: SchedulerOptions,
    max_context: int | None,
    info: NodeInfo,
    observe: ObserveOptions,
    machine: MachineOptions,
    security: CurveClient | None = None,
) -> Iterator[tuple[str, SchedulerProcess | SimWorkerProcess | SimNodesProcess]]:
    """Modules to start for nodes of these names, each with what it is told. In a shared process
    scheduler and worker talk over inproc:// instead of ipc://."""
    shared = options.sim_nodes_per_process > 1
    pairs = []
    for i, name in enumerate(names):
        address = f"inproc://worker-{i}" if shared else f"ipc://{runtime}/worker-{i}.sock"
        told = SchedulerProcess(
            name=f"scheduler-{i}",
            node=name,
            router_address=router_address,
            worker_address=address,
            options=scheduler,
            info=info,
            observe=observe,
            metrics_host=metrics_host(machine, router_address),
            metrics_port=metrics_port(machine, i),
            telemetry_address=telemetry_address(machine, runtime),
            security=security,
        )
        worker = SimWorkerProcess(
            name=f"worker-{i}",
            node=told.node,
            model_dir=model_dir,
            scheduler_address=address,
            max_context=max_context,
            options=options,
            observe=observe,
        )
        pairs.append((told, worker))
    if not shared:
        for told, worker in pairs:
            yield "mlxfleet.workers.scheduler_main", told
            yield "mlxfleet.workers.sim_main", worker
        return
    size = options.sim_nodes_per_process
    for index, start in enumerate(range(0, len(names), size)):
        group = SimNodesProcess(
            name=f"sim-nodes-{index}", nodes=tuple(pairs[start : start + size]), observe=observe
        )
        yield "mlxfleet.workers.sim_nodes_main", group
