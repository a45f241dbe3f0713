"""The commands for a cluster: up, status, down, logs, drain, undrain."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlxfleet.common.cluster import ssh
from mlxfleet.common.cluster.agent import Facts
from mlxfleet.common.cluster.board import Board
from mlxfleet.common.cluster.down import down as take_down
from mlxfleet.common.cluster.down import look
from mlxfleet.common.cluster.file import FRONT, Cluster, load_cluster
from mlxfleet.common.cluster.fleet_table import fleet_table
from mlxfleet.common.cluster.hosts import Hosts
from mlxfleet.common.cluster.key_sets import ensure_keys
from mlxfleet.common.cluster.plan import make_plan
from mlxfleet.common.cluster.rollout import Rollout
from mlxfleet.common.cluster.router_client import RouterClient, find_key
from mlxfleet.common.errors import ConfigError, NetworkError
from mlxfleet.common.say import say

DEFAULT_FILE = Path("cluster.toml")
WATCH_S = 1.0
PIPE_WIDTH = 200

ClusterOption = Annotated[Path, Parameter(help="The cluster file.")]
MaybeCluster = Annotated[Path | None, Parameter(help="The cluster file; cluster.toml by default.")]
Url = Annotated[str | None, Parameter(help="The front end, instead of a cluster file.")]
KeyFile = Annotated[
    Path | None,
    Parameter(
        help="File whose first line is the key; by default MLXFLEET_ADMIN_KEY or MLXFLEET_API_KEY,"
        " or the cluster file's own."
    ),
]


def up(*, cluster: ClusterOption = DEFAULT_FILE) -> None:
    """Start a cluster, or change a running one to what its file says, node by node."""
    loaded = load_cluster(cluster)
    asyncio.run(bring_up(loaded))
    say(f"ready {loaded.url}")


async def bring_up(cluster: Cluster) -> None:
    """Check hosts, make keys, carry out what has to be done."""
    board = Board(Console(stderr=True))
    client = RouterClient(cluster.url, find_key(cluster, None))
    async with opened_hosts(cluster, board) as hosts:
        if not cluster.spec.links.insecure:
            folder = cluster.local(cluster.spec.links.keys)
            if made := ensure_keys(folder, [node.name for node in cluster.spec.nodes]):
                board.set("keys", f"made those of {', '.join(made)} in {folder}", "ok")
        with board.shown():
            facts = await hosts.prepared()
            plan = make_plan(cluster, facts, hosts.version)
            await Rollout(hosts, client, plan).run()


def down(*, cluster: ClusterOption = DEFAULT_FILE) -> None:
    """Stop a cluster: the front end, which lets running requests end, then the nodes."""
    loaded = load_cluster(cluster)

    async def run() -> None:
        board = Board(Console(stderr=True))
        async with opened_hosts(loaded, board) as hosts:
            with board.shown():
                await take_down(hosts)

    asyncio.run(run())


def status(
    *,
    cluster: MaybeCluster = None,
    url: Url = None,
    watch: bool = False,
    api_key_file: KeyFile = None,
) -> None:
    """Show every node: chip, model, state, load, cache, tokens a second.

    Parameters
    ----------
    watch
        Go on showing it until Ctrl-C.
    """
    loaded, client = reached(cluster, url, api_key_file)
    # A pipe has no width; what reads it wants lines that are not broken.
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if watch:
        asyncio.run(show_for_ever(client, console))
        return
    try:
        fleet = asyncio.run(client.fleet())
    except NetworkError as error:
        if loaded is not None:
            Console(stderr=True).print(f"{error}; this is what the hosts say:", markup=False)
            asyncio.run(show_units(loaded, console))
        raise
    console.print(fleet_table(client.url, fleet))


async def show_for_ever(client: RouterClient, console: Console) -> None:
    """Draw the table again every second; a front end that is away is said so meanwhile."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            try:
                live.update(fleet_table(client.url, await client.fleet()), refresh=True)
            except NetworkError as error:
                live.update(f"{error}", refresh=True)
            await asyncio.sleep(max(0.0, WATCH_S - (time.monotonic() - began)))


async def show_units(cluster: Cluster, console: Console) -> None:
    """What the keepers on the hosts say, for when the front end says nothing."""
    found: dict[str, Facts] = {}
    failed: list[str] = []
    async with opened_hosts(cluster, Board(Console(quiet=True))) as hosts:
        await look(hosts, hosts.names, found, failed)
    table = Table("host", "unit", "state", "restarts", "last end")
    for host, facts in found.items():
        for name, unit in facts.units.items():
            keeper = unit.keeper
            cells = [keeper.state, str(keeper.restarts), keeper.last_exit] if keeper else ["dead"]
            table.add_row(host, name, *cells)
    console.print(table)
    for line in failed:
        console.print(line, markup=False)


def logs(
    host: str,
    /,
    *,
    cluster: ClusterOption = DEFAULT_FILE,
    follow: bool = False,
    lines: int = 100,
) -> None:
    """Show what a host's units have printed.

    Parameters
    ----------
    host
        A host of the cluster, or the name of a node, or `front`.
    follow
        Go on with new lines until Ctrl-C.
    lines
        How many lines of each unit.
    """
    loaded = load_cluster(cluster)
    if lines < 0:
        raise ConfigError("--lines: expected a number from 0")
    where, unit = place(loaded, host)

    spec = loaded.spec
    shell = ssh.Shell(spec.ssh, identity_of(loaded), spec.cluster.python, None)
    words = ["logs", spec.cluster.name, unit, str(lines), "follow" if follow else "once"]
    # The agent ends when its standard input does.
    with subprocess.Popen(
        shell.command(where, shell.agent(*words)), stdin=subprocess.PIPE
    ) as process:
        if process.wait():
            raise ssh.HostError(f"cannot show the log of {host}")


def place(cluster: Cluster, name: str) -> tuple[str, str]:
    """The host that a name means, and the unit if it means one."""
    spec = cluster.spec
    if name == FRONT:
        return spec.front.host, FRONT
    for node in spec.nodes:
        if node.name == name:
            return node.host, name
    if name in {spec.front.host, *(node.host for node in spec.nodes)}:
        return name, ""
    known = ", ".join([FRONT, *(node.name for node in spec.nodes)])
    raise ConfigError(f"there is no host or node {name} in the cluster; there are {known}")


def drain(
    node: str,
    /,
    *,
    cluster: MaybeCluster = None,
    url: Url = None,
    api_key_file: KeyFile = None,
) -> None:
    """Give a node no new requests, until undrain."""
    _, client = reached(cluster, url, api_key_file)
    asyncio.run(client.drain(node))
    print(f"draining {node}")


def undrain(
    node: str,
    /,
    *,
    cluster: MaybeCluster = None,
    url: Url = None,
    api_key_file: KeyFile = None,
) -> None:
    """Give a node requests again."""
    _, client = reached(cluster, url, api_key_file)
    asyncio.run(client.undrain(node))
    print(f"{node} takes requests again")


def reached(
    cluster: Path | None, url: str | None, key_file: Path | None
) -> tuple[Cluster | None, RouterClient]:
    """The front end that a cluster file or a URL names."""
    if url is not None and cluster is not None:
        raise ConfigError("--url and --cluster: give one of them")
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url: expected http://HOST:PORT, got {url}")
        return None, RouterClient(url.rstrip("/"), find_key(None, key_file))
    loaded = load_cluster(cluster or DEFAULT_FILE)
    return loaded, RouterClient(loaded.url, find_key(loaded, key_file))


@contextlib.asynccontextmanager
async def opened_hosts(cluster: Cluster, board: Board) -> AsyncIterator[Hosts]:
    """The hosts of a cluster, with shared ssh connections."""
    spec = cluster.spec
    async with ssh.opened(spec.ssh, identity_of(cluster), spec.cluster.python) as shell:
        yield Hosts(cluster, shell, board, version("mlxfleet"))


def identity_of(cluster: Cluster) -> Path | None:
    """The file of the ssh key to use, if the cluster file names one."""
    if cluster.spec.ssh.identity is None:
        return None
    identity = cluster.local(cluster.spec.ssh.identity)
    if not identity.exists():
        raise ConfigError(f"[ssh] identity: there is no {identity}")
    return identity
