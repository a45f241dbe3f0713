"""Where a node shows its metrics."""

from __future__ import annotations

import socket

from mlxfleet.common.addresses import WILDCARDS, bracketed, split_tcp
from mlxfleet.common.config import MachineOptions

LOOPBACK = "127.0.0.1"


def metrics_host(options: MachineOptions, router_address: str) -> str:
    """The address to listen on: as given, or else where the router's machine reaches this one."""
    if options.metrics_host is not None:
        return options.metrics_host
    return own_address(router_address)


def shown_address(host: str, port: int, router_address: str) -> str:
    """HOST:PORT under which others reach what listens there."""
    if host in WILDCARDS:
        host = own_address(router_address)
    return f"{bracketed(host)}:{port}"


def own_address(router_address: str) -> str:
    """This machine's address as the router's machine sees it."""
    if not router_address.startswith("tcp://"):
        return LOOPBACK
    return own_address_towards(*split_tcp(router_address))


def own_address_towards(host: str, port: int) -> str:
    """This machine's address on the way to another; loopback without such a way."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # For UDP this only looks up the route.
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK


def metrics_port(options: MachineOptions, index: int) -> int:
    """The port of the node of an index; 0 for any."""
    return options.metrics_port and options.metrics_port + index
