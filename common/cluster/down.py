"""`mlxfleet down`: the front end first, which lets running requests end, then the nodes."""

from __future__ import annotations

from mlxfleet.common.cluster.agent import Facts, Stop
from mlxfleet.common.cluster.file import FRONT
from mlxfleet.common.cluster.hosts import Hosts, all_of
from mlxfleet.common.cluster.ssh import HostError


async def down(hosts: Hosts) -> None:
    """Stop everything that hosts have a record of. HostError names those where that failed; the
    others are stopped all the same."""
    failed: list[str] = []
    found: dict[str, Facts] = {}
    await look(hosts, hosts.names, found, failed)
    front = found.get(hosts.cluster.spec.front.host)
    members = front.units[FRONT].members if front and FRONT in front.units else {}
    others = [host for host in dict.fromkeys(members.values()) if host not in hosts.names]
    await look(hosts, others, found, failed)
    units = [(host, name) for host, facts in found.items() for name in facts.units]
    for group in ([u for u in units if u[1] == FRONT], [u for u in units if u[1] != FRONT]):
        try:
            await all_of({f"{name} on {host}": stop(hosts, host, name) for host, name in group})
        except HostError as error:
            failed.append(str(error))
    if not units and not failed:
        hosts.board.set(hosts.cluster.spec.cluster.name, "nothing runs", "ok")
    if failed:
        raise HostError("\n".join(failed))


async def look(hosts: Hosts, names: list[str], found: dict[str, Facts], failed: list[str]) -> None:
    """Ask hosts what runs there."""
    for host in names:
        hosts.board.set(host, "looking")

    async def one(host: str) -> None:
        found[host] = await hosts.probe(host)
        hosts.board.set(host, f"has {', '.join(sorted(found[host].units)) or 'nothing'}", "ok")

    try:
        await all_of({host: one(host) for host in names})
    except HostError as error:
        failed.append(str(error))


async def stop(hosts: Hosts, host: str, name: str) -> None:
    """Stop one unit."""
    hosts.board.set(name, f"stopping on {host}")
    await hosts.shell.ask(host, Stop(hosts.cluster.spec.cluster.name, name), bool)
    hosts.board.set(name, f"stopped on {host}", "ok")
