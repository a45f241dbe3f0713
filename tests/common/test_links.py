"""Who may open which link, and at which addresses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mlxfleet.common.addresses import as_reached, split_tcp, tcp_address
from mlxfleet.common.config import LinkOptions, SecurityOptions
from mlxfleet.common.curve import CurveClient, CurveServer
from mlxfleet.common.errors import ConfigError, PortInUseError
from mlxfleet.common.key_files import write_keys
from mlxfleet.common.links import (
    advertised_host,
    bind_host,
    free_ports,
    node_security,
    router_security,
)

PLAIN = SecurityOptions()
INSECURE = SecurityOptions(insecure_links=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert router_security(LinkOptions(node_host=host), PLAIN) is None
    assert node_security(tcp_address(host, 8100), "a", PLAIN) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "10.0.0.1", "studio.local", "::"])
def test_other_addresses_need_keys_or_the_flag(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--node-host .*`mlxfleet keys .*--insecure-links"):
        router_security(LinkOptions(node_host=host), PLAIN)
    assert router_security(LinkOptions(node_host=host), INSECURE) is None
    if host not in ("*", "::"):
        with pytest.raises(ConfigError, match=r"--router .*`mlxfleet keys .*--insecure-links"):
            node_security(tcp_address(host, 8100), "a", PLAIN)
        assert node_security(tcp_address(host, 8100), "a", INSECURE) is None


def test_keys_are_read_from_their_folder(tmp_path: Path) -> None:
    write_keys(tmp_path, ["a"])
    options = SecurityOptions(keys=tmp_path)
    server = router_security(LinkOptions(node_host="0.0.0.0"), options)
    client = node_security("tcp://10.0.0.1:8100", "a", options)
    assert isinstance(server, CurveServer)
    assert isinstance(client, CurveClient)
    assert server.secret == (tmp_path / "router.secret").read_text().strip()
    assert client.secret == (tmp_path / "a.secret").read_text().strip()
    assert client.server == (tmp_path / "router.public").read_text().strip()
    for side in (server, client):
        assert side.secret not in repr(side)


def test_a_wrong_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        router_security(LinkOptions(), SecurityOptions(keys=tmp_path / "none"))
    with pytest.raises(ConfigError, match="no public key of a node"):
        router_security(LinkOptions(), SecurityOptions(keys=tmp_path))
    with pytest.raises(ConfigError, match="exclude each other"):
        router_security(LinkOptions(), SecurityOptions(keys=tmp_path, insecure_links=True))


def test_nodes_are_told_an_address_that_they_reach() -> None:
    assert advertised_host(LinkOptions(node_host="10.0.0.1")) == "10.0.0.1"
    assert advertised_host(LinkOptions(node_host="0.0.0.0", advertise_host="front")) == "front"
    told = tcp_address(advertised_host(LinkOptions(node_host="0.0.0.0")), 8101)
    assert as_reached(told, "tcp://studio.local:8100") == "tcp://studio.local:8101"
    assert as_reached(told, "tcp://[fe80::1]:8100") == "tcp://[fe80::1]:8101"
    assert as_reached("tcp://front:8101", "tcp://studio.local:8100") == "tcp://front:8101"
    assert as_reached("ipc:///tmp/x", "ipc:///tmp/y") == "ipc:///tmp/x"


@pytest.mark.parametrize("host", ["10.0.0.1", "studio.local", "::1", "fe80::1%en0"])
def test_addresses_survive(host: str) -> None:
    assert split_tcp(tcp_address(host, 8100)) == (host, 8100)


@pytest.mark.parametrize(
    "address", ["", "studio:8100", "tcp://studio", "tcp://studio:0", "tcp://a:70000", "http://a:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--router: expected tcp://HOST:PORT"):
        split_tcp(address)


def test_ports_come_in_a_row_and_taken_ones_are_named() -> None:
    first, second = free_ports("127.0.0.1", 0, 2)
    assert second == first + 1
    with socket.socket() as held:
        held.bind(("127.0.0.1", second))
        held.listen()
        with pytest.raises(PortInUseError, match=f"{second} .*--node-port"):
            free_ports("127.0.0.1", first, 2)
    with pytest.raises(ConfigError, match="--node-port"):
        free_ports("127.0.0.1", 65535, 2)
    with pytest.raises(ConfigError, match="--node-host"):
        free_ports("192.0.2.1", 0, 1)


def test_names_are_looked_up_before_binding() -> None:
    assert bind_host("localhost") == "127.0.0.1"
    assert bind_host("0.0.0.0") == "*"
    assert bind_host("::") == "::"
    with pytest.raises(ConfigError, match="--node-host"):
        bind_host("no such host")
