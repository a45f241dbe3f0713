"""Which processes a front end and a node have, and what each is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxfleet.common import config
from mlxfleet.common.addresses import split_tcp, tcp_address
from mlxfleet.common.allowed import check_allowed, reachable_as
from mlxfleet.common.blas import worker_environment
from mlxfleet.common.config import (
    DetokenizerProcess,
    FleetOptions,
    FrontOptions,
    Keys,
    MachineOptions,
    ObserveOptions,
    RouterOptions,
    RouterProcess,
    SchedulerOptions,
    SchedulerProcess,
    ServedModel,
    SimNodesProcess,
    SimOptions,
    SimWorkerProcess,
    TelemetryProcess,
    TokenizerProcess,
    WorkerOptions,
    WorkerProcess,
)
from mlxfleet.common.curve import CurveClient, CurveServer
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.messages import NodeInfo
from mlxfleet.common.metrics_address import metrics_host, metrics_port
from mlxfleet.common.model_config import known_sizes
from mlxfleet.common.preflight import SECRETS_ENV
from mlxfleet.common.sampling_defaults import SamplingDefaults, read_sampling_defaults
from mlxfleet.common.sim_specs import check_sim, sim_orders
from mlxfleet.common.supervisor import ProcessSpec
from mlxfleet.common.telemetry.source import OFF, check_source, telemetry_address
from mlxfleet.common.tracing import check_tracing

Process = (
    RouterProcess
    | TokenizerProcess
    | DetokenizerProcess
    | SchedulerProcess
    | WorkerProcess
    | SimWorkerProcess
    | SimNodesProcess
    | TelemetryProcess
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """All options of a fleet on one machine."""

    model: str | None
    router: RouterOptions
    front: FrontOptions = field(default_factory=FrontOptions)
    fleet: FleetOptions
    scheduler: SchedulerOptions
    worker: WorkerOptions
    sim: SimOptions = field(default_factory=SimOptions)
    observe: ObserveOptions = field(default_factory=ObserveOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def validated(self) -> Launch:
        """Check every option; ConfigError names the wrong one."""
        for part in (
            self.router,
            self.front,
            self.fleet,
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
        check_allowed(self.router)
        if self.fleet.nodes > 1 and self.sim.engine == "mlx" and sys.platform == "darwin":
            raise ConfigError("--nodes: a Mac has one Metal device, so it can be one node only")
        return self


@dataclass(frozen=True, kw_only=True)
class FrontLinks:
    """Where a front end listens for nodes: its router, and each detokenizer, whose addresses nodes
    are told as `advertised`."""

    router: str
    tokens: Sequence[str]
    advertised: Sequence[str]
    security: CurveServer | None = None


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """A front end: a router, and processes that know text for each of its models."""

    models: Sequence[tuple[ServedModel, Path]]
    router: RouterOptions
    options: FrontOptions
    links: FrontLinks
    keys: Keys = field(default=Keys(), repr=False)
    trust_remote_code: bool = False
    observe: ObserveOptions = ObserveOptions()  # noqa: RUF009 - frozen


@dataclass(frozen=True, kw_only=True)
class Node:
    """A compute node. `share` is its part of the machine; one that is not `vital` leaves others to
    do its work."""

    name: str
    model_dir: Path
    router_address: str
    scheduler: SchedulerOptions
    worker: WorkerOptions
    info: NodeInfo
    share: float = 1.0
    vital: bool = True
    observe: ObserveOptions = ObserveOptions()  # noqa: RUF009 - frozen
    machine: MachineOptions = MachineOptions()  # noqa: RUF009
    security: CurveClient | None = None


def local_links(runtime: Path, detokenizers: int) -> FrontLinks:
    """Unix sockets for nodes on this machine."""
    tokens = [f"ipc://{runtime}/tokens-{i}.sock" for i in range(detokenizers)]
    return FrontLinks(router=f"ipc://{runtime}/nodes.sock", tokens=tokens, advertised=tokens)


def tcp_links(
    host: str, advertised_host: str, ports: Sequence[int], security: CurveServer | None
) -> FrontLinks:
    """TCP ports for nodes anywhere: the first for the router, one more per detokenizer."""
    return FrontLinks(
        router=tcp_address(host, ports[0]),
        tokens=[tcp_address(host, port) for port in ports[1:]],
        advertised=[tcp_address(advertised_host, port) for port in ports[1:]],
        security=security,
    )


def make_specs(
    options: Launch,
    runtime: Path,
    model_dir: Path,
    model_name: str,
    keys: Keys,
    info: NodeInfo = NodeInfo(),  # noqa: B008 - frozen
) -> list[ProcessSpec]:
    """A front end and its nodes, all on one machine. `info` is what the nodes tell of it."""
    served = served_model(options.router, model_dir, model_name, info.tokenizer_hash)
    front = FrontEnd(
        models=[(served, model_dir)],
        router=options.router,
        options=options.front,
        links=local_links(runtime, options.front.detokenizers),
        keys=keys,
        trust_remote_code=options.worker.trust_remote_code,
        observe=options.observe,
    )
    specs = front_specs(front, runtime) + telemetry_specs(options.machine, runtime, options.observe)
    several = options.fleet.nodes > 1
    if options.sim.engine == "sim":
        orders = sim_orders(
            options.sim,
            names=[f"node-{i}" for i in range(options.fleet.nodes)],
            runtime=runtime,
            model_dir=model_dir,
            router_address=front.links.router,
            scheduler=options.scheduler,
            max_context=options.worker.max_context,
            info=info,
            observe=options.observe,
            machine=options.machine,
        )
        vital = not several
        return specs + [process_spec(runtime, module, t, vital=vital) for module, t in orders]
    for i in range(options.fleet.nodes):
        node = Node(
            name=f"node-{i}",
            model_dir=model_dir,
            router_address=front.links.router,
            scheduler=options.scheduler,
            worker=options.worker,
            info=info,
            share=1 / options.fleet.nodes,
            vital=not several,
            observe=options.observe,
            machine=options.machine,
        )
        specs += node_specs(node, runtime, i)
    return specs


def served_model(
    options: RouterOptions, model_dir: Path, source: str, tokenizer_hash: str
) -> ServedModel:
    """A model's entry in the orders of a router."""
    recommended = options.generation_config != "off"
    sizes = known_sizes(model_dir)
    return ServedModel(
        name=options.served_model_name or source,
        source=source,
        tokenizer_hash=tokenizer_hash,
        vocab_size=sizes.vocab_size,
        context_length=sizes.context_length,
        sampling=read_sampling_defaults(model_dir) if recommended else SamplingDefaults(),
    )


def front_specs(front: FrontEnd, runtime: Path) -> list[ProcessSpec]:
    """The router, tokenizers and detokenizers. Writes their orders into the private folder."""
    router = RouterProcess(
        name="router",
        models=tuple(served for served, _ in front.models),
        keys=front.keys,
        tokenizer_address=f"ipc://{runtime}/tokenizers.sock",
        detokenizer_address=f"ipc://{runtime}/detokenizers.sock",
        node_address=front.links.router,
        options=reachable_as(front.router, front.router.host, *advertised_hosts(front.links)),
        observe=front.observe,
        security=front.links.security,
    )
    specs = [process_spec(runtime, "mlxfleet.router", router, stop_order=0, stop_grace_s=None)]
    for position, (served, model_dir) in enumerate(front.models):
        for i in range(front.options.tokenizers):
            tokenizer = TokenizerProcess(
                name=f"tokenizer-{position * front.options.tokenizers + i}",
                model_dir=model_dir,
                router_address=router.tokenizer_address,
                trust_remote_code=front.trust_remote_code,
                model=served.name,
                special_tokens_in_content=front.options.special_tokens_in_content,
                observe=front.observe,
            )
            specs.append(process_spec(runtime, "mlxfleet.tokenizer_proc", tokenizer))
        for i in range(front.options.detokenizers):
            index = position * front.options.detokenizers + i
            detokenizer = DetokenizerProcess(
                name=f"detokenizer-{index}",
                model_dir=model_dir,
                router_address=router.detokenizer_address,
                token_address=front.links.tokens[index],
                advertised_address=front.links.advertised[index],
                trust_remote_code=front.trust_remote_code,
                model=served.name,
                observe=front.observe,
                security=front.links.security,
            )
            specs.append(process_spec(runtime, "mlxfleet.detokenizer_proc", detokenizer))
    return specs


def advertised_hosts(links: FrontLinks) -> list[str]:
    """The hosts in the addresses that nodes are given."""
    return [split_tcp(address)[0] for address in links.advertised if address.startswith("tcp://")]


def node_specs(node: Node, runtime: Path, index: int = 0) -> list[ProcessSpec]:
    """A node's scheduler and its worker. Writes their orders into the private folder."""
    scheduler = SchedulerProcess(
        name=f"scheduler-{index}",
        node=node.name,
        router_address=node.router_address,
        worker_address=f"ipc://{runtime}/worker-{index}.sock",
        options=node.scheduler,
        info=node.info,
        observe=node.observe,
        metrics_host=metrics_host(node.machine, node.router_address),
        metrics_port=metrics_port(node.machine, index),
        telemetry_address=telemetry_address(node.machine, runtime),
        security=node.security,
    )
    worker = WorkerProcess(
        name=f"worker-{index}",
        model_dir=node.model_dir,
        scheduler_address=scheduler.worker_address,
        max_rows=node.scheduler.rows,
        max_chunk_tokens=node.scheduler.max_chunk_tokens,
        options=node.worker,
        observe=node.observe,
        machine_share=node.share,
    )
    threads = node.worker.blas_threads or max(1, int((os.cpu_count() or 1) * node.share))
    return [
        process_spec(runtime, "mlxfleet.workers.scheduler_main", scheduler, vital=node.vital),
        process_spec(
            runtime,
            "mlxfleet.workers.worker_main",
            worker,
            environment=worker_environment(threads),
            vital=node.vital,
        ),
    ]


def telemetry_specs(
    machine: MachineOptions, runtime: Path, observe: ObserveOptions
) -> list[ProcessSpec]:
    """What reads the sensors for all nodes of this machine, unless that is off."""
    if machine.telemetry == OFF:
        return []
    told = TelemetryProcess(
        name="telemetry",
        address=telemetry_address(machine, runtime),
        source=machine.telemetry,
        observe=observe,
    )
    module = "mlxfleet.common.telemetry.main"
    return [process_spec(runtime, module, told, vital=False, awaited=False)]


def process_spec(
    runtime: Path,
    module: str,
    process: Process,
    *,
    environment: dict[str, str] | None = None,
    stop_order: int = 1,
    stop_grace_s: float | None = 5.0,
    vital: bool = True,
    awaited: bool = True,
) -> ProcessSpec:
    """How to start a process whose orders are `process`."""
    orders = runtime / f"{process.name}.json"
    config.save(process, orders)
    inherited = {key: value for key, value in os.environ.items() if key not in SECRETS_ENV}
    return ProcessSpec(
        name=process.name,
        command=[sys.executable, "-m", module, str(orders)],
        environment={**inherited, **(environment or {})},
        stop_order=stop_order,
        stop_grace_s=stop_grace_s,
        vital=vital,
        awaited=awaited,
        witnesses=witnesses(process),
    )


def witnesses(process: Process) -> Sequence[str]:
    """Processes of this machine at the other ends of a process's links, whose records have what it
    sent and received. The router has too many of them, telemetry sends nothing of interest."""
    match process:
        case WorkerProcess() | SimWorkerProcess():
            return (process.name.replace("worker", "scheduler"),)
        case SchedulerProcess():
            return ("router", process.name.replace("scheduler", "worker"))
        case RouterProcess() | TelemetryProcess():
            return ()
    return ("router",)
