"""The live page as it is sent: what is in it, and what browsers may do with it."""

from __future__ import annotations

import re

import pytest

from mlxfleet.router.ui import page
from mlxfleet.router.ui.page import SCRIPTS, Page, part, policy, source_hash

HTML = Page().body.decode()


def inside(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_policy_names_what_is_inside() -> None:
    allowed = policy(inside("style"), inside("script"))
    assert f"script-src '{source_hash(inside('script'))}';" in allowed
    assert f"style-src '{source_hash(inside('style'))}';" in allowed
    assert allowed.startswith("default-src 'none'; ")
    assert "unsafe" not in allowed


def test_a_hash_is_as_browsers_compute_it() -> None:
    assert source_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_every_script_is_used() -> None:
    folder = page.resources.files("mlxfleet.router.ui")
    assert {f.name for f in folder.iterdir() if f.name.endswith(".js")} == set(SCRIPTS)
    assert all(part(name) in HTML for name in SCRIPTS)


def test_nothing_is_fetched_from_elsewhere() -> None:
    without_names = HTML.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z]", without_names)
    addresses = re.findall(r'\b(?:src|href)="([^"]*)"', part("page.html"))
    assert addresses
    assert all(address.startswith(("#", "data:image/svg+xml,")) for address in addresses)
    assert not re.search(r"@import|url\(", HTML)


def test_markup_has_no_handlers_and_no_styles_of_its_own() -> None:
    assert not re.search(r"<[^>]*\s(on\w+|style)=", part("page.html"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_write_text_only(name: str) -> None:
    makes_html = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b"
    assert not re.search(makes_html, part(name))
