"""Where Prometheus finds the metrics of nodes, for its `http_sd_configs`.

Prometheus fetches what it is given from inside the network, so a node may not have it fetch
anything else: its address has to be one that a node can have.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections import OrderedDict
from typing import TypedDict

from mlxfleet.common.limits import reason
from mlxfleet.router.nodes import Nodes

log = logging.getLogger(__name__)

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*\.?")
MAX_HOST = 253
# Where clouds answer with secrets: AWS, GCP and Azure; ECS; AWS over IPv6; Alibaba.
METADATA = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200")
METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data")
LOCAL_NAMES = ("localhost", "localhost.localdomain")
MAX_LOGGED = 1024

_logged: OrderedDict[tuple[str, str], None] = OrderedDict()


class ScrapeTarget(TypedDict):
    """One group of targets, as Prometheus reads it."""

    targets: list[str]
    labels: dict[str, str]


def scrape_targets(nodes: Nodes) -> list[ScrapeTarget]:
    """The nodes that are known, also those that are dead: Prometheus should notice that.

    Their names are in labels that begin with `__meta_`, for relabelling; nodes name themselves in
    what they show.
    """
    return [
        {
            "targets": [status.metrics_address],
            "labels": {
                "__meta_mlxfleet_node": name,
                "__meta_mlxfleet_model": nodes.model_of(name),
                "__meta_mlxfleet_host": status.info.host,
            },
        }
        for name, status in sorted(nodes.status.items())
        if status.metrics_address and shown(name, status.metrics_address, nodes.address_of(name))
    ]


def shown(node: str, address: str, connected_from: str) -> bool:
    """Whether Prometheus is given a node's address; a refusal is logged once."""
    why = refusal(address, connected_from)
    if why and (node, address) not in _logged:
        _logged[node, address] = None
        if len(_logged) > MAX_LOGGED:
            _logged.popitem(last=False)
        log.warning("Prometheus is not given %s of %s: %s", reason(address), node, why)
    return why is None


def refusal(address: str, connected_from: str) -> str | None:
    """Why an address, HOST:PORT, cannot be that of a node that is connected from an IP address, ""
    on this machine's sockets; None if it can."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        return "it is not HOST:PORT"
    try:
        ip = ipaddress.ip_address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
    except ValueError:
        return name_refusal(host, connected_from)
    if str(ip) in METADATA or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return "no node can have that address"
    own = connected_from == "" or str(ip) == plain(connected_from)
    if (ip.is_loopback and not local(connected_from)) or (ip.is_link_local and not own):
        return "the node is not connected from there"
    return None


def name_refusal(host: str, connected_from: str) -> str | None:
    """Why a host name cannot be that of a node."""
    if len(host) > MAX_HOST or HOST_NAME.fullmatch(host) is None:
        return "it is not HOST:PORT"
    name = host.rstrip(".").lower()
    if name in METADATA_NAMES or all(part.isdigit() for part in name.split(".")):
        return "no node can have that name"
    if name in LOCAL_NAMES and not local(connected_from):
        return "the node is not connected from there"
    return None


def plain(address: str) -> str:
    """An IP address without what libzmq adds to it."""
    return address.removeprefix("::ffff:").partition("%")[0]


def local(connected_from: str) -> bool:
    """Whether a node is on this machine, by where it is connected from."""
    return connected_from == "" or plain(connected_from).startswith(("127.", "::1"))
