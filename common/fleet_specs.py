"""Which processes a one-machine fleet has, and what each is told."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mlxfleet.common import config
from mlxfleet.common.blas import worker_environment
from mlxfleet.common.config import (
    DetokenizerProcess,
    FleetOptions,
    RouterOptions,
    RouterProcess,
    SchedulerOptions,
    SchedulerProcess,
    SimNodesProcess,
    SimOptions,
    SimWorkerProcess,
    TokenizerProcess,
    WorkerOptions,
    WorkerProcess,
)
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.preflight import API_KEY_ENV
from mlxfleet.common.sim_specs import check_sim, sim_orders
from mlxfleet.common.supervisor import ProcessSpec

Process = (
    RouterProcess
    | TokenizerProcess
    | DetokenizerProcess
    | SchedulerProcess
    | WorkerProcess
    | SimWorkerProcess
    | SimNodesProcess
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """All options of a fleet on one machine."""

    model: str | None
    router: RouterOptions
    fleet: FleetOptions
    scheduler: SchedulerOptions
    worker: WorkerOptions
    sim: SimOptions = field(default_factory=SimOptions)

    def validated(self) -> Launch:
        """Check every option; ConfigError names the wrong one."""
        for part in (self.router, self.fleet, self.scheduler, self.worker, self.sim):
            config.validated(part)
        check_sim(self.sim, self.worker)
        if self.fleet.nodes > 1 and self.sim.engine == "mlx" and sys.platform == "darwin":
            raise ConfigError("--nodes: a Mac has one Metal device, so it can be one node only")
        return self


def make_specs(
    options: Launch, runtime: Path, model_dir: Path, model_name: str, keys: tuple[str, ...]
) -> list[ProcessSpec]:
    """Write each process's orders into the private runtime folder; return how to start them."""

    def address(name: str) -> str:
        return f"ipc://{runtime}/{name}.sock"

    trust = options.worker.trust_remote_code
    router = RouterProcess(
        name="router",
        model_name=options.router.served_model_name or model_name,
        api_keys=keys,
        tokenizer_address=address("tokenizers"),
        detokenizer_address=address("detokenizers"),
        node_address=address("nodes"),
        options=options.router,
    )
    specs = [process_spec(runtime, "mlxfleet.router", router, stop_order=0, stop_grace_s=None)]
    for i in range(options.fleet.tokenizers):
        tokenizer = TokenizerProcess(
            name=f"tokenizer-{i}",
            model_dir=model_dir,
            router_address=router.tokenizer_address,
            trust_remote_code=trust,
        )
        specs.append(process_spec(runtime, "mlxfleet.tokenizer_proc", tokenizer))
    for i in range(options.fleet.detokenizers):
        detokenizer = DetokenizerProcess(
            name=f"detokenizer-{i}",
            model_dir=model_dir,
            router_address=router.detokenizer_address,
            token_address=address(f"tokens-{i}"),
            trust_remote_code=trust,
        )
        specs.append(process_spec(runtime, "mlxfleet.detokenizer_proc", detokenizer))
    if options.sim.engine == "sim":
        orders = sim_orders(
            options.sim,
            nodes=options.fleet.nodes,
            runtime=runtime,
            model_dir=model_dir,
            router_address=router.node_address,
            scheduler=options.scheduler,
            max_context=options.worker.max_context,
        )
        return specs + [process_spec(runtime, module, told) for module, told in orders]
    for i in range(options.fleet.nodes):
        specs += node_specs(options, runtime, model_dir, i, router.node_address)
    return specs


def node_specs(
    options: Launch, runtime: Path, model_dir: Path, index: int, router_address: str
) -> list[ProcessSpec]:
    """A compute node: its scheduler and its worker."""
    share = 1 / options.fleet.nodes
    scheduler = SchedulerProcess(
        name=f"scheduler-{index}",
        node=f"node-{index}",
        router_address=router_address,
        worker_address=f"ipc://{runtime}/worker-{index}.sock",
        options=options.scheduler,
    )
    worker = WorkerProcess(
        name=f"worker-{index}",
        model_dir=model_dir,
        scheduler_address=scheduler.worker_address,
        max_running=options.scheduler.max_running,
        max_chunk_tokens=options.scheduler.max_chunk_tokens,
        options=options.worker,
        machine_share=share,
    )
    threads = options.worker.blas_threads or max(1, int((os.cpu_count() or 1) * share))
    return [
        process_spec(runtime, "mlxfleet.workers.scheduler_main", scheduler),
        process_spec(
            runtime,
            "mlxfleet.workers.worker_main",
            worker,
            environment=worker_environment(threads),
        ),
    ]


def process_spec(
    runtime: Path,
    module: str,
    process: Process,
    *,
    environment: dict[str, str] | None = None,
    stop_order: int = 1,
    stop_grace_s: float | None = 5.0,
) -> ProcessSpec:
    """How to start a process whose orders are `process`."""
    orders = runtime / f"{process.name}.json"
    config.save(process, orders)
    inherited = {key: value for key, value in os.environ.items() if key != API_KEY_ENV}
    return ProcessSpec(
        name=process.name,
        command=[sys.executable, "-m", module, str(orders)],
        environment={**inherited, **(environment or {})},
        stop_order=stop_order,
        stop_grace_s=stop_grace_s,
    )
