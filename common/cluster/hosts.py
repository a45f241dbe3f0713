"""The first half of `mlxfleet up`: look at every host, and have models there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mlxfleet.common.cluster.agent import Facts, Fetch, Probe
from mlxfleet.common.cluster.board import Board
from mlxfleet.common.cluster.checks import host_problems, missing_models, needed_ports
from mlxfleet.common.cluster.file import Cluster
from mlxfleet.common.cluster.plan import needed_models
from mlxfleet.common.cluster.ssh import HostError, Shell

T = TypeVar("T")


@dataclass(frozen=True)
class Hosts:
    """The hosts of a cluster, and how to reach them."""

    cluster: Cluster
    shell: Shell
    board: Board
    version: str

    @property
    def names(self) -> list[str]:
        """Every host once, the front end's first."""
        spec = self.cluster.spec
        return list(dict.fromkeys([spec.front.host, *(node.host for node in spec.nodes)]))

    async def prepared(self) -> dict[str, Facts]:
        """Check all hosts at once, then fetch what models are missing. HostError names every host
        that cannot do its part."""
        facts = await self.checked(self.names)
        for host in self.names:
            for model in missing_models(self.cluster, host, facts[host]):
                self.board.set(host, f"fetching {model}")
        await all_of({host: self._fetch(host, facts[host]) for host in self.names})
        return facts

    async def checked(self, names: list[str]) -> dict[str, Facts]:
        """What each host is."""
        return await all_of({host: self._check(host) for host in names})

    async def _check(self, host: str) -> Facts:
        self.board.set(host, "checking")
        try:
            facts = await self.probe(host)
        except HostError as error:
            self.board.set(host, str(error), "failed")
            raise
        if found := host_problems(self.cluster, host, facts, self.version):
            self.board.set(host, "; ".join(found), "failed")
            raise HostError("; ".join(found))
        self.board.set(host, described(facts), "ok")
        return facts

    async def probe(self, host: str) -> Facts:
        """Ask a host what it is and what runs there."""
        order = Probe(
            cluster=self.cluster.spec.cluster.name,
            models=tuple(needed_models(self.cluster, host)),
            ports=needed_ports(self.cluster, host),
            service=self.cluster.spec.cluster.service,
        )
        return await self.shell.ask(host, order, Facts)

    async def _fetch(self, host: str, facts: Facts) -> None:
        for model in missing_models(self.cluster, host, facts):
            shower = self.board.shower(host)
            folder = await self.shell.ask(host, Fetch(model), str, shower)
            self.board.set(host, f"has {model} in {folder}", "ok")


def described(facts: Facts) -> str:
    """A host in a line."""
    python = ".".join(map(str, facts.python))
    return (
        f"{facts.system} {facts.machine}, {facts.memory_gb:.0f} GB of memory,"
        f" {facts.free_disk_gb:.0f} GB of disk free, Python {python}, {facts.service}"
    )


async def all_of(work: Mapping[str, Awaitable[T]]) -> dict[str, T]:
    """Do work for several names at once; HostError with each that failed, when all have ended."""
    results = await asyncio.gather(*work.values(), return_exceptions=True)
    done, failed = {}, []
    for name, result in zip(work, results, strict=True):
        if isinstance(result, HostError):
            failed.append(f"{name}: {result}")
        elif isinstance(result, BaseException):
            raise result
        else:
            done[name] = result
    if failed:
        raise HostError("\n".join(failed))
    return done
