"""What a web page may not do: decisions about single requests."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.config import Keys, RouterOptions
from mlxfleet.common.errors import RequestError
from mlxfleet.router.web_guard import (
    ADMIN_CODE,
    HOST_CODE,
    JSON_CODE,
    ORIGIN_CODE,
    Incoming,
    WebGuard,
    is_json,
)

NO_KEYS, API, ADMIN = Keys(), Keys(api=("k",)), Keys(admin="a")
CHAT = "/v1/chat/completions"
EVIL = "http://evil.example"
APP = "app://obsidian.md"


def refusal(
    keys: Keys = NO_KEYS,
    allowed_hosts: tuple[str, ...] = (),
    allowed_origins: tuple[str, ...] = (),
    **fields: Any,
) -> RequestError | None:
    """The verdict about a request; by default a program's GET of /fleet at localhost:8000."""
    options = RouterOptions(allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
    asked: dict[str, Any] = {"method": "GET", "path": "/fleet", "hosts": ("localhost:8000",)}
    return WebGuard(keys, options, {"studio", "studio.local"}).refusal(
        Incoming(**{**asked, **fields})
    )


def code(*arguments: Any, **fields: Any) -> str | None:
    """The code of the refusal, None if it is served."""
    error = refusal(*arguments, **fields)
    return error.code if error else None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "a.localhost:8000",
        "127.0.0.1:8000",
        "10.1.2.3",
        "[::1]:8000",
        "[fe80::1%25en0]",
        "studio:8000",
        "Studio.Local.:8000",
    ],
)
def test_own_names_and_addresses_are_served(host: str) -> None:
    assert refusal(hosts=(host,)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:8000",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "studio.evil.example",
        "evil.studio.local",
        "user@localhost",
        "",
        "::1",
    ],
)
def test_other_names_are_not_served_without_keys(host: str) -> None:
    refused = refusal(hosts=(host,))
    assert refused is not None
    assert (refused.status, refused.code) == (421, HOST_CODE)
    assert code(API, hosts=(host,)) is None
    assert code(ADMIN, hosts=(host,)) == HOST_CODE


@given(st.text(max_size=30))
def test_nothing_makes_a_foreign_name_ours(text: str) -> None:
    for host in (f"{text}.evil.example", f"{text}@evil.example", f"localhost{text}.evil.example"):
        assert code(hosts=(host,)) == HOST_CODE


def test_a_refused_host_is_told_which_option_helps() -> None:
    refused = refusal(hosts=("chat.lan:8000",))
    assert refused is not None
    assert "--allowed-hosts chat.lan" in refused.message
    assert refusal(allowed_hosts=("chat.lan",), hosts=("chat.lan:8000",)) is None


def test_every_host_of_a_request_counts() -> None:
    assert code(hosts=("localhost", "evil.example")) == HOST_CODE
    assert code(hosts=("localhost", "127.0.0.1")) is None
    # HTTP/1.0, which no browser speaks.
    assert code(hosts=()) is None


@pytest.mark.parametrize("keys", [NO_KEYS, API, ADMIN])
@pytest.mark.parametrize(
    "origins",
    [
        (EVIL,),
        ("null",),
        ("http://localhost:3000",),
        ("https://localhost:8443",),
        (APP,),
        ("",),
        ("http://localhost:8000", EVIL),
        (EVIL, "http://localhost:8000"),
        ("http://localhost:8000 http://evil.example",),
    ],
)
@pytest.mark.parametrize("path", ["/fleet", "/metrics", "/health", "/ui", "/v1/models", "/nothing"])
def test_foreign_origins_are_refused_everywhere(
    keys: Keys, origins: tuple[str, ...], path: str
) -> None:
    refused = refusal(keys, path=path, origins=origins)
    assert refused is not None
    assert (refused.status, refused.code) == (403, ORIGIN_CODE)


def test_the_live_page_is_no_foreigner() -> None:
    ours = {"origins": ("http://localhost:8000",), "content_type": "application/json"}
    assert code(method="POST", path=CHAT, **ours) is None
    behind_a_proxy = {"hosts": ("llm.example",), "origins": ("https://llm.example",)}
    assert code(API, **behind_a_proxy) is None
    # A page under a name of the attacker's is the same as its host, which is not ours.
    assert code(hosts=("evil.example",), origins=(EVIL,)) == HOST_CODE


def test_a_refused_origin_is_told_which_option_helps() -> None:
    refused = refusal(origins=(APP,))
    assert refused is not None
    assert f"--allowed-origins {APP}" in refused.message
    assert refusal(allowed_origins=(APP,), origins=(APP,)) is None
    assert refusal(allowed_origins=("*",), origins=("null",)) is None
    assert code(allowed_origins=(APP,), origins=(EVIL,)) == ORIGIN_CODE


def test_what_is_embedded_elsewhere_is_refused_and_links_are_not() -> None:
    assert code(fetch_site="cross-site", fetch_mode="no-cors") == ORIGIN_CODE
    assert code(fetch_site="same-site", fetch_mode="no-cors") == ORIGIN_CODE
    assert code(path="/ui", fetch_site="cross-site", fetch_mode="navigate") is None
    assert code(fetch_site="same-origin", fetch_mode="cors") is None
    assert code(fetch_site="none", fetch_mode="navigate") is None
    # Node's fetch, which is no browser's.
    assert code(fetch_mode="cors") is None


@pytest.mark.parametrize("path", ["/admin/drain/a", "/admin", "/admin/anything"])
def test_admin_paths_want_their_header_where_no_key_guards_them(path: str) -> None:
    refused = refusal(method="POST", path=path)
    assert refused is not None
    assert (refused.status, refused.code) == (403, ADMIN_CODE)
    assert "X-Mlxfleet-Admin: 1" in refused.message
    assert code(method="POST", path=path, admin="0") == ADMIN_CODE
    assert code(method="POST", path=path, admin="1") is None
    assert code(API, method="POST", path=path) is None
    assert code(ADMIN, method="POST", path=path) is None
    assert code(method="POST", path="/administrator") is None


def test_no_allowed_page_changes_the_fleet_without_a_key() -> None:
    page = {"method": "POST", "path": "/admin/drain/a", "origins": (EVIL,), "admin": "1"}
    for allowed in ((EVIL,), ("*",)):
        assert code(allowed_origins=allowed, **page) == ORIGIN_CODE
        assert code(allowed_origins=allowed, **{**page, "method": "OPTIONS", "preflight": True})
        assert code(ADMIN, allowed_origins=allowed, **page) is None


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json;", True),
        ("application/vnd.api+json", True),
        ("", False),
        ("text/plain", False),
        ("text/plain;application/json", False),
        ("text/plain, application/json", False),
        ("application/json, text/plain", False),
        ("application/x, a+json", False),
        ("application/jsonx", False),
        ("application/+json", False),
        ("text/json", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
    ],
)
def test_what_counts_as_json(content_type: str, expected: bool) -> None:
    assert is_json(content_type) is expected


@pytest.mark.parametrize("keys", [NO_KEYS, API])
def test_another_body_is_told_the_right_command(keys: Keys) -> None:
    refused = refusal(keys, method="POST", path=CHAT, content_type="text/plain")
    assert refused is not None
    assert (refused.status, refused.code) == (415, JSON_CODE)
    words = shlex.split(refused.message.partition(": ")[2])
    assert words[:2] == ["curl", f"http://localhost:8000{CHAT}"]
    assert "Content-Type: application/json" in words
    assert ("Authorization: Bearer $MLXFLEET_API_KEY" in words) is bool(keys.api)


def test_only_posts_that_go_somewhere_need_json() -> None:
    assert code(method="POST", path=CHAT, known=False) is None
    assert code(method="GET", path="/v1/models") is None
    assert code(method="POST", path="/admin/drain/a", admin="1") is None


def test_preflights_need_neither_key_nor_header_nor_body() -> None:
    asks = {"method": "OPTIONS", "path": CHAT, "preflight": True, "origins": (APP,)}
    assert code(API, allowed_origins=(APP,), **asks) is None
    assert code(API, **asks) == ORIGIN_CODE
    assert code(allowed_origins=(APP,), **{**asks, "hosts": ("evil.example",)}) == HOST_CODE


@given(st.text(max_size=2000))
def test_what_is_quoted_of_a_request_is_bounded_and_printable(text: str) -> None:
    for fields in (
        {"hosts": (text,)},
        {"origins": (text,)},
        {"method": "POST", "path": CHAT, "content_type": text},
        {"method": "POST", "path": f"/admin/{text}"},
    ):
        if (refused := refusal(**fields)) is not None:
            assert len(refused.message) < 1000
            assert refused.message.isprintable()
