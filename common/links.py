"""What is checked before a TCP link is opened, and the keys that it gets."""

from __future__ import annotations

import socket
from pathlib import Path

from mlxfleet.common.addresses import ANY_HOST, WILDCARDS, split_tcp
from mlxfleet.common.config import LinkOptions, SecurityOptions
from mlxfleet.common.curve import CurveClient, CurveServer
from mlxfleet.common.errors import ConfigError, PortInUseError
from mlxfleet.common.key_files import ROUTER, accepted_keys, node_secret_path, read_key
from mlxfleet.common.preflight import is_loopback

HIGHEST_PORT = 65535
RANGE_ATTEMPTS = 50


def router_security(link: LinkOptions, options: SecurityOptions) -> CurveServer | None:
    """The front end's keys; None for plain links, if those are allowed here."""
    if (keys := key_folder(options)) is None:
        refuse_open_link(f"--node-host {link.node_host}", link.node_host, options)
        return None
    if not accepted_keys(keys):
        raise ConfigError(f"--keys: there is no public key of a node in {keys}")
    return CurveServer(secret=read_key(keys / f"{ROUTER}.secret"), accepted=keys)


def node_security(router: str, name: str, options: SecurityOptions) -> CurveClient | None:
    """A node's keys; None for plain links, if those are allowed here."""
    host, _ = split_tcp(router)
    if (keys := key_folder(options)) is None:
        refuse_open_link(f"--router {router}", host, options)
        return None
    return CurveClient(
        server=read_key(keys / f"{ROUTER}.public"),
        secret=read_key(node_secret_path(keys, name)),
    )


def key_folder(options: SecurityOptions) -> Path | None:
    """The folder of --keys, which has to be one."""
    if options.keys is None:
        return None
    if options.insecure_links:
        raise ConfigError("--insecure-links and --keys exclude each other")
    folder = options.keys.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"--keys: there is no folder {folder}; `mlxfleet keys` makes one")
    return folder


def refuse_open_link(flag: str, host: str, options: SecurityOptions) -> None:
    """No keys, no link that leaves this machine, unless asked for."""
    if options.insecure_links or is_loopback(host):
        return
    raise ConfigError(
        f"{flag} is not only this machine, and there are no keys. Make some with `mlxfleet keys"
        " --out DIR` and give --keys, or --insecure-links if everybody may join and read along"
    )


def advertised_host(link: LinkOptions) -> str:
    """The host in the addresses that nodes are told; `*` for the one that they used."""
    if link.advertise_host is not None:
        return link.advertise_host
    return ANY_HOST if link.node_host in WILDCARDS else link.node_host


def bind_host(host: str) -> str:
    """The numeric address to bind, IPv4 if there is one: ZeroMQ does not look up names.

    ConfigError if the host is unknown.
    """
    if host in WILDCARDS:
        return host if ":" in host else ANY_HOST
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--node-host: cannot find {host}: {error}") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def free_ports(host: str, first: int, count: int) -> list[int]:
    """`count` ports in a row from `first` on, any free ones if that is 0. `host` is as bound.

    PortInUseError if one is taken.
    """
    any_free_port(host)
    if first:
        if first + count - 1 > HIGHEST_PORT:
            raise ConfigError(f"--node-port: {count} ports from {first} on are needed")
        ports = list(range(first, first + count))
        for port in ports:
            if not is_free(host, port):
                raise PortInUseError(f"port {port} is in use; choose another with --node-port")
        return ports
    for _ in range(RANGE_ATTEMPTS):
        start = any_free_port(host)
        ports = list(range(start, start + count))
        if ports[-1] <= HIGHEST_PORT and all(is_free(host, port) for port in ports[1:]):
            return ports
    raise PortInUseError(f"cannot find {count} free ports in a row on {host}")


def is_free(host: str, port: int) -> bool:
    """Whether a port can be bound."""
    try:
        probe(host, port)
    except OSError:
        return False
    return True


def any_free_port(host: str) -> int:
    """A port that can be bound. ConfigError if the host's address is not this machine's."""
    try:
        return probe(host, 0)
    except OSError as error:
        raise ConfigError(f"--node-host: cannot listen on {host}: {error}") from error


def probe(host: str, port: int) -> int:
    """Bind a port for a moment; return its number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("" if host == ANY_HOST else host, port))
        return int(held.getsockname()[1])
