"""TCP addresses of links: `tcp://HOST:PORT`, brackets around IPv6."""

from __future__ import annotations

import re

from mlxfleet.common.errors import ConfigError

ANY_HOST = "*"
WILDCARDS = frozenset({ANY_HOST, "", "0.0.0.0", "::"})
TCP = re.compile(
    r"tcp://(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:/\[\]\s]+)):(?P<port>\d{1,5})"
)


def tcp_address(host: str, port: int) -> str:
    """The ZeroMQ endpoint of a host's port."""
    return f"tcp://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def split_tcp(address: str) -> tuple[str, int]:
    """Host and port of `tcp://HOST:PORT`; ConfigError for anything else."""
    found = TCP.fullmatch(address)
    port = int(found["port"]) if found else 0
    if found is None or not 1 <= port <= 65535:
        raise ConfigError(f"--router: expected tcp://HOST:PORT, got {address!r}")
    return found["v6"] or found["host"], port


def as_reached(address: str, router_address: str) -> str:
    """A front end's address, with the host under which its router was reached instead of `*`."""
    prefix = f"tcp://{ANY_HOST}:"
    if not address.startswith(prefix):
        return address
    host, _ = split_tcp(router_address)
    return tcp_address(host, int(address.removeprefix(prefix)))
