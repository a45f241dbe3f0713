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

from mlxfleet.common.config import (
    FleetOptions,
    RouterOptions,
    SchedulerOptions,
    SimOptions,
    WorkerOptions,
)
from mlxfleet.common.errors import ExitCode, MlxfleetError
from mlxfleet.common.fleet_specs import Launch
from mlxfleet.common.launch import launch

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
    fleet: FleetOptions = FleetOptions(),  # noqa: B008
    scheduler: SchedulerOptions = SchedulerOptions(),  # noqa: B008
    worker: WorkerOptions = WorkerOptions(),  # noqa: B008
    sim: SimOptions = SimOptions(),  # noqa: B008
) -> None:
    """Start everything on this machine and serve until stopped.

    Parameters
    ----------
    model
        A model folder or a hub id; a small demo model if not given.
    """
    launch(
        Launch(model=model, router=router, fleet=fleet, scheduler=scheduler, worker=worker, sim=sim)
    )


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


def main() -> None:
    """Entry point of the console command."""
    # Until `launch` handles it, SIGTERM ends a download as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except MlxfleetError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.FORCED)


if __name__ == "__main__":
    main()
