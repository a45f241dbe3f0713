"""The `mlxfleet` command."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

from mlxfleet.common.config import (
    FleetOptions,
    FrontOptions,
    LinkOptions,
    MachineOptions,
    ObserveOptions,
    RouterOptions,
    SchedulerOptions,
    SecurityOptions,
    SimOptions,
    WorkerOptions,
)
from mlxfleet.common.errors import ExitCode, MlxfleetError
from mlxfleet.common.fleet_specs import Launch
from mlxfleet.common.key_files import DEFAULT_NODE, write_keys
from mlxfleet.common.launch import launch
from mlxfleet.common.run_node import NodeCommand, run_node
from mlxfleet.common.run_router import RouterCommand, run_router

app = App(
    name="mlxfleet",
    help="Serve large language models on Macs behind one OpenAI-compatible endpoint.",
    version=lambda: version("mlxfleet"),
    config=cyclopts.config.Env("MLXFLEET_", command=False),
)


@app.command(name="launch")
def launch_command(
    *,
    model: str | None = None,
    router: RouterOptions = RouterOptions(),  # noqa: B008 - frozen
    front: FrontOptions = FrontOptions(),  # noqa: B008
    fleet: FleetOptions = FleetOptions(),  # noqa: B008
    scheduler: SchedulerOptions = SchedulerOptions(),  # noqa: B008
    worker: WorkerOptions = WorkerOptions(),  # noqa: B008
    sim: SimOptions = SimOptions(),  # noqa: B008
    observe: ObserveOptions = ObserveOptions(),  # noqa: B008
    machine: MachineOptions = MachineOptions(),  # noqa: B008
) -> None:
    """Start everything on this machine and serve until stopped.

    Parameters
    ----------
    model
        A model folder or a hub id; a small demo model if not given.
    """
    launch(
        Launch(
            model=model,
            router=router,
            front=front,
            fleet=fleet,
            scheduler=scheduler,
            worker=worker,
            sim=sim,
            observe=observe,
            machine=machine,
        )
    )


@app.command(name="router")
def router_command(
    *,
    model: Annotated[list[str] | None, Parameter(negative=())] = None,
    options: RouterOptions = RouterOptions(),  # noqa: B008
    front: FrontOptions = FrontOptions(),  # noqa: B008
    link: LinkOptions = LinkOptions(),  # noqa: B008
    security: SecurityOptions = SecurityOptions(),  # noqa: B008
    observe: ObserveOptions = ObserveOptions(),  # noqa: B008
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Start a front end, which nodes on this and other machines join.

    Parameters
    ----------
    model
        A model folder or a hub id, of which only the tokenizer is needed; may be given several
        times; a small demo model if not given.
    trust_remote_code
        Run Python code that comes with a model's tokenizer.
    """
    run_router(
        RouterCommand(
            models=model or [],
            router=options,
            front=front,
            link=link,
            security=security,
            trust_remote_code=trust_remote_code,
            observe=observe,
        )
    )


@app.command(name="node")
def node_command(
    *,
    router: str,
    model: str | None = None,
    name: str | None = None,
    security: SecurityOptions = SecurityOptions(),  # noqa: B008
    scheduler: SchedulerOptions = SchedulerOptions(),  # noqa: B008
    worker: WorkerOptions = WorkerOptions(),  # noqa: B008
    sim: SimOptions = SimOptions(),  # noqa: B008
    observe: ObserveOptions = ObserveOptions(),  # noqa: B008
    machine: MachineOptions = MachineOptions(),  # noqa: B008
) -> None:
    """Start a compute node on this machine, which joins a router and comes back to it for ever.

    Parameters
    ----------
    router
        Where the router listens for nodes: tcp://HOST:PORT.
    model
        A model folder or a hub id; a small demo model if not given.
    name
        The node's name; made once per machine and kept if not given.
    """
    run_node(
        NodeCommand(
            router=router,
            model=model,
            name=name,
            security=security,
            scheduler=scheduler,
            worker=worker,
            sim=sim,
            observe=observe,
            machine=machine,
        )
    )


@app.command(name="keys")
def keys_command(
    *,
    out: Annotated[Path, Parameter(help="Folder to write into.")],
    node: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> None:
    """Make CURVE keys: a pair for the router, and one for the nodes.

    Parameters
    ----------
    node
        A node that gets a pair of its own, named after its --name; may be given several times.
        Without it, all nodes share the pair `node`.
    """
    for path in write_keys(out, node or [DEFAULT_NODE]):
        print(f"wrote {path}")
    print("The router's host needs router.secret and every node's .public file.")
    print("A node's host needs router.public and that node's .secret file.")


@app.command(name="demo-model")
def demo_model_command(
    *,
    out: Annotated[Path, Parameter(help="Folder to write; must not exist or be empty.")],
    dtype: Literal["float32", "float16", "q4"] | None = None,
) -> None:
    """Write the demo model, SmolLM2-135M-Instruct, as an MLX model folder.

    Parameters
    ----------
    dtype
        Precision of the weights; float32 on Linux and float16 on a Mac if not given.
    """
    from mlxfleet.common.demo_model import write_demo_model

    write_demo_model(out, dtype)
    print(f"wrote {out}")


for name in ("up", "status", "down", "logs", "drain", "undrain"):
    app.command(f"mlxfleet.common.cluster.commands:{name}", name=name)
app.command("mlxfleet.bench.cli:app", name="bench")

app.command("mlxfleet.common.tap.command:tap", name="tap")


def main() -> None:
    """Entry point of the console command."""
    # Until `launch` handles it, SIGTERM ends a download as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except MlxfleetError as error:
        text = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.FORCED)


if __name__ == "__main__":
    main()
