"""What Prometheus may be sent to fetch."""

from __future__ import annotations

import pytest

from mlxfleet.router.scrape_targets import refusal

REMOTE = "10.0.0.7"


@pytest.mark.parametrize(
    ("address", "connected_from"),
    [
        ("10.0.0.7:9090", REMOTE),
        ("192.168.1.9:9090", REMOTE),
        ("studio-3.local:9090", REMOTE),
        ("[fd12::7]:9090", REMOTE),
        ("169.254.7.1:9090", "169.254.7.1"),
        ("169.254.7.1:9090", "::ffff:169.254.7.1"),
        ("127.0.0.1:9090", "127.0.0.3"),
        ("127.0.0.1:9090", ""),
    ],
)
def test_an_address_that_a_node_can_have_is_shown(address: str, connected_from: str) -> None:
    assert refusal(address, connected_from) is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":9090",
        "10.0.0.7",
        "10.0.0.7:0",
        "10.0.0.7:65536",
        "10.0.0.7:9090/admin",
        "user@10.0.0.7:9090",
        "a b:9090",
        "169.254.169.254:80",
        "169.254.7.1:9090",
        "[fe80::1]:9090",
        "127.0.0.1:8000",
        "[::1]:8000",
        "localhost:8000",
        "2130706433:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "metadata.google.internal:80",
        "x" * 300 + ":80",
    ],
)
def test_an_address_that_leads_elsewhere_is_not(address: str) -> None:
    assert refusal(address, REMOTE) is not None


def test_the_metadata_service_is_never_shown() -> None:
    assert refusal("169.254.169.254:80", "169.254.169.254") is not None
