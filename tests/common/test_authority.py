"""Host and Origin headers, however odd."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.authority import (
    Authority,
    is_loopback_name,
    is_same,
    parse_authority,
    parse_origin,
)

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda n: not n[-1].isdigit())
PORTS = st.none() | st.integers(0, 65535)


def with_port(host: str, port: int | None) -> str:
    return host if port is None else f"{host}:{port}"


@given(NAMES, PORTS)
def test_a_name_is_read_in_any_case_and_with_the_root_s_dot(name: str, port: int | None) -> None:
    expected = Authority(name, port, False)
    for written in (name, name.upper(), f"{name}."):
        assert parse_authority(with_port(written, port)) == expected


@given(st.ip_addresses(), PORTS)
def test_an_address_is_read_with_any_port(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None
) -> None:
    full = f"[{address.exploded}]" if address.version == 6 else str(address)
    assert parse_authority(with_port(full, port)) == Authority(str(address), port, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8000",
        "user@localhost",
        "user:secret@localhost:8000",
        "localhost@evil.example",
        "localhost/../evil",
        "localhost#evil.example",
        "localhost?x",
        "localhost\\.evil.example",
        "localhost evil.example",
        "localhost\t",
        "localhost,evil.example",
        "localhost..",
        ".localhost",
        "a..localhost",
        "-a.localhost",
        "localhost:80:80",
        "localhost:http",
        "localhost:65536",
        "localhost:-1",
        "localhost:٨٠",
        "[::1",
        "::1",
        "[::1]evil.example",
        "[localhost]",
        "[127.0.0.1]",
        "[]",
        "loc\u212aalhost",
        "ｌocalhost",
        "loc\udce4lhost",
        "a" * 64,
        "a." * 150 + "b",
        "9" * 1000,
    ],
)
def test_what_is_no_authority_is_none(text: str) -> None:
    assert parse_authority(text) is None


@given(st.text(max_size=40))
def test_any_text_is_read_or_not_but_never_an_error(text: str) -> None:
    found = parse_authority(text)
    if found is not None and found.is_ip:
        ipaddress.ip_address(found.host)
    parse_origin(text)


@given(st.sampled_from(["@", "#", "/", "?", "\\", " ", ",", "\0", "%", "\r\n"]), NAMES)
def test_a_name_ends_at_nothing_but_its_port(separator: str, evil: str) -> None:
    assert parse_authority(f"localhost{separator}{evil}") is None
    assert parse_authority(f"{evil}{separator}localhost") is None


def test_an_address_with_a_zone_is_an_address() -> None:
    assert parse_authority("[fe80::1%25en0]:8000") == Authority("fe80::1", 8000, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("a.b.localhost", True),
        ("notlocalhost", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback_names(name: str, expected: bool) -> None:
    assert is_loopback_name(name) is expected


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("HTTP://LocalHost:80", "http://localhost"),
        ("https://a.example:443", "https://a.example"),
        ("https://a.example:80", "https://a.example:80"),
        ("http://[0:0::1]:8000", "http://[::1]:8000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://-", "app://-"),
        ("file://", "file://"),
        ("vscode-webview://1TC3F", "vscode-webview://1tc3f"),
    ],
)
def test_origins_have_one_form(written: str, canonical: str) -> None:
    found = parse_origin(written)
    assert found is not None
    assert found.text == canonical


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "",
        "a.example",
        "http://",
        "http://a@b",
        "http://a/b",
        "http://a http://b",
        "http://a, http://b",
        "://a",
        "app://a/b",
        "http://a:b",
        "app://\u212a",
    ],
)
def test_what_is_no_origin_is_none(text: str) -> None:
    assert parse_origin(text) is None


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LOCALHOST.:8000", "localhost:8000", True),
        ("http://localhost", "localhost:80", True),
        ("https://llm.example", "llm.example", True),
        ("https://llm.example", "llm.example:443", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("http://evil.example:8000", "localhost:8000", False),
        ("app://localhost:8000", "localhost:8000", False),
    ],
)
def test_a_page_is_ours_by_host_and_port(origin: str, host: str, same: bool) -> None:
    page, here = parse_origin(origin), parse_authority(host)
    assert page is not None
    assert here is not None
    assert is_same(page, here) is same
