"""What `--allowed-hosts` and `--allowed-origins` mean, and what they refuse to mean."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mlxfleet.common.allowed import AllowedHosts, AllowedOrigins, check_allowed, reachable_as
from mlxfleet.common.authority import parse_origin
from mlxfleet.common.cli import app
from mlxfleet.common.config import RouterOptions
from mlxfleet.common.errors import ConfigError
from tests.common.cluster.examples import SMALL, load


@pytest.mark.parametrize(
    ("values", "host", "allowed"),
    [
        ((), "a.lan", False),
        (("a.lan",), "a.lan", True),
        (("A.LAN.",), "a.lan", True),
        (("a.lan, b.lan",), "b.lan", True),
        (("a.lan", "b.lan"), "b.lan", True),
        (("a.lan",), "x.a.lan", False),
        (("*.lan",), "x.a.lan", True),
        (("*.lan",), "lan", False),
        (("*.lan",), "evillan", False),
        (("*",), "anything", True),
    ],
)
def test_hosts(values: tuple[str, ...], host: str, allowed: bool) -> None:
    assert (host in AllowedHosts(values)) is allowed


@pytest.mark.parametrize(
    ("values", "origin", "allowed"),
    [
        ((), "https://a.lan", False),
        (("https://a.lan",), "https://a.lan", True),
        (("https://A.lan:443/",), "https://a.lan", True),
        (("https://a.lan",), "http://a.lan", False),
        (("https://a.lan",), "https://a.lan:8443", False),
        (("https://a.lan",), "https://a.lan.evil.example", False),
        (("app://obsidian.md",), "app://obsidian.md", True),
        (("app://obsidian.md",), "app://evil", False),
        (("vscode-webview://*",), "vscode-webview://17af", True),
        (("vscode-webview://*",), "app://17af", False),
        (("file://",), "file://", True),
        (("*",), "https://a.lan", True),
        (("*",), "null", True),
        (("https://a.lan",), "null", False),
        (("https://*", "app://*"), "null", False),
    ],
)
def test_origins(values: tuple[str, ...], origin: str, allowed: bool) -> None:
    assert (parse_origin(origin) in AllowedOrigins(values)) is allowed


@pytest.mark.parametrize(
    "changes",
    [
        {"allowed_hosts": ("http://a.lan",)},
        {"allowed_hosts": ("a.lan:8000",)},
        {"allowed_hosts": ("*a.lan",)},
        {"allowed_hosts": ("a b",)},
        {"allowed_origins": ("a.lan",)},
        {"allowed_origins": ("null",)},
        {"allowed_origins": ("https://a.lan/path",)},
        {"allowed_origins": ("https://*.lan",)},
        {"allowed_origins": ("*://a.lan",)},
    ],
)
def test_a_malformed_entry_is_refused_at_the_start(changes: dict[str, tuple[str, ...]]) -> None:
    [name] = changes
    flag = "--" + name.replace("_", "-")
    with pytest.raises(
        ConfigError, match=f"{flag}: expected .*got {re.escape(repr(changes[name][0]))}"
    ):
        check_allowed(dataclasses.replace(RouterOptions(), **changes))


def test_a_cluster_file_has_lists(tmp_path: Path) -> None:
    good = SMALL.replace("allow_no_auth = true", 'allow_no_auth = true\nallowed_hosts = ["a.lan"]')
    assert load(tmp_path, good).front_settings["allowed_hosts"] == ["a.lan"]
    with pytest.raises(ConfigError, match=r"allowed_hosts: expected names .* got 'a:1'"):
        load(tmp_path, good.replace("a.lan", "a:1"))


def parsed(*arguments: str) -> RouterOptions:
    """What the command line makes of arguments."""
    _, bound, _ = app.parse_args(["launch", *arguments], exit_on_error=False, print_error=False)
    found: RouterOptions = bound.arguments.get("router", RouterOptions())
    return found


def test_flags_and_environment_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = parsed("--allowed-hosts", "a.lan", "--allowed-hosts=b.lan").allowed_hosts
    assert repeated == ("a.lan", "b.lan")
    monkeypatch.setenv("MLXFLEET_ALLOWED_ORIGINS", "app://a,https://b.lan")
    monkeypatch.setenv("MLXFLEET_ALLOWED_HOSTS", "a.lan b.lan")
    options = parsed()
    origins = AllowedOrigins(options.allowed_origins)
    assert all(parse_origin(text) in origins for text in ("app://a", "https://b.lan"))
    assert all(name in AllowedHosts(options.allowed_hosts) for name in ("a.lan", "b.lan"))


def test_where_we_say_that_we_are_we_are_reached() -> None:
    options = reachable_as(RouterOptions(), "Front.lan", "0.0.0.0", "::1", "*")
    assert options.allowed_hosts == ("front.lan",)
