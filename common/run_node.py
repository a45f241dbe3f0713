"""`mlxfleet node`: a compute node that joins a router over TCP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from mlxfleet.common import config
from mlxfleet.common.blas import warn_without_openblas
from mlxfleet.common.config import (
    MachineOptions,
    ObserveOptions,
    SchedulerOptions,
    SecurityOptions,
    SimOptions,
    WorkerOptions,
)
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.fleet_specs import Node, node_specs, process_spec, telemetry_specs
from mlxfleet.common.links import node_security
from mlxfleet.common.model_files import resolve_model
from mlxfleet.common.node_identity import node_info, node_name
from mlxfleet.common.preflight import check_machine, least_files
from mlxfleet.common.process import configure_logging
from mlxfleet.common.runtime import runtime_folder
from mlxfleet.common.say import say
from mlxfleet.common.sim_specs import check_sim, sim_orders
from mlxfleet.common.supervising import supervise
from mlxfleet.common.supervisor import ProcessSpec
from mlxfleet.common.telemetry.source import check_source
from mlxfleet.common.tracing import check_tracing


@dataclass(frozen=True, kw_only=True)
class NodeCommand:
    """All options of a node; no model stands for the demo model."""

    router: str
    model: str | None
    name: str | None
    security: SecurityOptions
    scheduler: SchedulerOptions
    worker: WorkerOptions
    sim: SimOptions = SimOptions()  # noqa: RUF009 - frozen
    observe: ObserveOptions = ObserveOptions()  # noqa: RUF009
    machine: MachineOptions = MachineOptions()  # noqa: RUF009

    def validated(self) -> NodeCommand:
        """Check every option; ConfigError names the wrong one."""
        for part in (
            self.security,
            self.scheduler,
            self.worker,
            self.sim,
            self.observe,
            self.machine,
        ):
            config.validated(part)
        check_sim(self.sim, self.worker)
        check_source(self.machine)
        check_tracing(self.observe)
        if self.sim.sim_nodes_per_process > 1:
            raise ConfigError("--sim-nodes-per-process: this is one node; `launch` has several")
        return self


def run_node(command: NodeCommand) -> None:
    """Run until stopped by SIGTERM or SIGINT, refused, or a process cannot be kept running.

    The scheduler is ready when the router has let it in, so there is nothing else to wait for.
    """
    name = node_name(command.validated().name)
    configure_logging(name)
    check_machine(least_files(command.sim))
    security = node_security(command.router, name, command.security)
    model_dir, model_name = resolve_model(command.model)
    info = node_info(model_name, model_dir)

    def specs(runtime: Path) -> list[ProcessSpec]:
        telemetry = telemetry_specs(command.machine, runtime, command.observe)
        if command.sim.engine == "sim":
            orders = sim_orders(
                command.sim,
                names=[name],
                runtime=runtime,
                model_dir=model_dir,
                router_address=command.router,
                scheduler=command.scheduler,
                max_context=command.worker.max_context,
                info=info,
                observe=command.observe,
                machine=command.machine,
                security=security,
            )
            nodes = [process_spec(runtime, module, told, vital=False) for module, told in orders]
            return telemetry + nodes
        warn_without_openblas()
        node = Node(
            name=name,
            model_dir=model_dir,
            router_address=command.router,
            scheduler=command.scheduler,
            worker=command.worker,
            info=info,
            vital=False,
            observe=command.observe,
            machine=command.machine,
            security=security,
        )
        return telemetry + node_specs(node, runtime)

    async def announce() -> None:
        say(f"ready node {name}")

    with runtime_folder() as runtime:
        asyncio.run(supervise(specs(runtime), announce))
