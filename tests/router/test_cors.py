"""CORS headers, and the server in front of which they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.router.cors import HEADER_NAME, exposed, header_names, preflight_headers, varying

SDK = "authorization,content-type,x-stainless-arch,x-stainless-retry-count,anthropic-version"


def test_a_preflight_gets_the_headers_that_it_asked_for() -> None:
    headers = preflight_headers({"Access-Control-Request-Headers": SDK})
    assert headers["Access-Control-Allow-Headers"].split(", ") == SDK.split(",")
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert int(headers["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Private-Network" not in headers
    assert "Access-Control-Allow-Headers" not in preflight_headers({})


def test_private_networks_are_opened_where_that_is_asked() -> None:
    headers = preflight_headers({"Access-Control-Request-Private-Network": "true"})
    assert headers["Access-Control-Allow-Private-Network"] == "true"


@given(st.text(max_size=500))
def test_only_header_names_are_repeated(text: str) -> None:
    names = header_names(text)
    assert len(names) <= 64
    assert all(HEADER_NAME.fullmatch(name) and name in text for name in names)


def test_pages_may_read_our_own_headers() -> None:
    names = exposed(["Content-Type", "X-Mlxfleet-Ignored", "x-request-id"])
    assert names == "Retry-After, X-Mlxfleet-Ignored, x-request-id"


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (None, "Origin"),
        ("Accept", "Accept, Origin"),
        ("origin, Accept", "origin, Accept"),
        ("*", "*"),
    ],
)
def test_caches_keep_pages_apart(present: str | None, expected: str) -> None:
    assert varying(present) == expected
