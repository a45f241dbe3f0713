"""Which requests may come from a web page that has no business here, and what they are answered.

Somebody who runs the server also opens web pages, and a page can make the browser send requests to
localhost. What it can do without being asked (a GET, a form, a plain-text POST), what it can read
(nothing, unless a DNS name of its own leads here), and which headers browsers add decide the rules:
docs/threat-model.md has them with their reasons. No I/O: a request in, an error or None out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container
from dataclasses import dataclass

from mlxfleet.common.admin_header import ADMIN_HEADER, ADMIN_VALUE
from mlxfleet.common.allowed import AllowedHosts, AllowedOrigins
from mlxfleet.common.authority import (
    Authority,
    Origin,
    is_loopback_name,
    is_same,
    parse_authority,
    parse_origin,
)
from mlxfleet.common.config import Keys, RouterOptions
from mlxfleet.common.errors import (
    ForbiddenError,
    MisdirectedError,
    RequestError,
    UnsupportedMediaError,
)
from mlxfleet.router.examples import curl

HOST_CODE = "host_not_allowed"
ORIGIN_CODE = "origin_not_allowed"
ADMIN_CODE = "admin_header_required"
JSON_CODE = "json_required"
CODES = (HOST_CODE, ORIGIN_CODE, ADMIN_CODE, JSON_CODE)

JSON_TYPE = re.compile(r"application/(?:[!#$%&'*+.^_`|~0-9a-z-]+\+)?json")
FROM_ELSEWHERE = ("cross-site", "same-site")
SHOWN_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """What the guard looks at. `hosts` are the Host header and the authority of an absolute request
    target; `known` says that there is something at this path for this method; `preflight` that a
    browser asks what it may send."""

    method: str
    path: str
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    content_type: str = ""
    admin: str = ""
    fetch_site: str = ""
    fetch_mode: str = ""
    scheme: str = "http"
    known: bool = True
    preflight: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether it asks to change the fleet."""
        return self.path == "/admin" or self.path.startswith("/admin/")


class WebGuard:
    """Decides by the keys and lists of one router. `own_names` are the machine's."""

    def __init__(self, keys: Keys, options: RouterOptions, own_names: Container[str]) -> None:
        self._keyed = bool(keys.api)
        self._admin_keyed = bool(keys.api or keys.admin)
        self._own_names = own_names
        self._hosts = AllowedHosts(options.allowed_hosts)
        self.origins = AllowedOrigins(options.allowed_origins)

    def refusal(self, asked: Incoming) -> RequestError | None:
        """Why a request is refused, or None. Its `code` is one of CODES."""
        refused = self._misdirected(asked) or self._foreign(asked)
        if refused is not None or asked.preflight:
            return refused
        return self._without_admin_header(asked) or self._without_json(asked)

    def _misdirected(self, asked: Incoming) -> RequestError | None:
        """A name of the attacker's that leads to this machine makes his page ours (DNS rebinding).
        He cannot do that with an address, nor with a name that is not his; and with keys it is of
        no use to him. HTTP/1.0 without a host is no browser."""
        if self._keyed:
            return None
        for text in asked.hosts:
            host = parse_authority(text)
            if host is None or not self._serves(host):
                return MisdirectedError(misdirected_text(text, host), code=HOST_CODE)
        return None

    def _serves(self, host: Authority) -> bool:
        return (
            host.is_ip
            or is_loopback_name(host.host)
            or host.host in self._hosts
            or host.host in self._own_names
        )

    def _foreign(self, asked: Incoming) -> RequestError | None:
        """Browsers name the page that sends a POST or reads an answer; for what is merely embedded
        (an <img>) they say that it comes from elsewhere. Links, which navigate, may lead here."""
        if not asked.origins:
            embedded = asked.fetch_site in FROM_ELSEWHERE and asked.fetch_mode != "navigate"
            return foreign("another site", None) if embedded and not self.origins.any else None
        text = asked.origins[0]
        origin = parse_origin(text) if len(asked.origins) == 1 else None
        if self._is_ours(origin, asked):
            return None
        if origin not in self.origins:
            return foreign(shown(text), origin)
        if asked.is_admin and not self._admin_keyed:
            return ForbiddenError(
                f"pages of {shown(text)} may not change the fleet without a key: set"
                " --admin-key-file and send its key",
                code=ORIGIN_CODE,
            )
        return None

    def _is_ours(self, origin: Origin | None, asked: Incoming) -> bool:
        """Whether the page was loaded from here."""
        hosts = [parse_authority(text) for text in asked.hosts]
        return (
            origin is not None
            and bool(hosts)
            and all(host is not None and is_same(origin, host) for host in hosts)
        )

    def _without_admin_header(self, asked: Incoming) -> RequestError | None:
        """No form and no plain request can have this header, nor a bearer key."""
        if not asked.is_admin or self._admin_keyed or asked.admin == ADMIN_VALUE:
            return None
        return ForbiddenError(
            f"{shown(asked.path)} wants the header '{ADMIN_HEADER}: {ADMIN_VALUE}', which web forms"
            f" cannot send: curl -X {asked.method} -H '{ADMIN_HEADER}: {ADMIN_VALUE}'"
            f" {shlex.quote(url(asked))}",
            code=ADMIN_CODE,
        )

    def _without_json(self, asked: Incoming) -> RequestError | None:
        """A page may send text/plain, forms and bodies without a type to anybody, JSON not."""
        if asked.method != "POST" or not asked.path.startswith("/v1/") or not asked.known:
            return None
        if is_json(asked.content_type):
            return None
        given = f"not {shown(asked.content_type)}" if asked.content_type else "and there is none"
        return UnsupportedMediaError(
            f"the header Content-Type has to be application/json, {given}:"
            f" {curl(url(asked), asked.path, with_key=self._keyed)}",
            code=JSON_CODE,
        )


def is_json(content_type: str) -> bool:
    """Whether a Content-Type is JSON or a kind of it, with whatever parameters."""
    return JSON_TYPE.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def misdirected_text(text: str, host: Authority | None) -> str:
    """Which option helps, if there is one."""
    if host is None:
        return f"the header Host is malformed: {shown(text)}"
    return (
        f"this server does not go by the name {shown(host.host)}. Without API keys it serves only"
        " localhost, IP addresses and this machine's own names, so that no web page can get here by"
        f" a name of its own. If the name is meant: --allowed-hosts {shown(host.host)}"
    )


def foreign(page: str, origin: Origin | None) -> RequestError:
    """Which option helps."""
    helps = (
        f"If it is meant to: --allowed-origins {shown(origin.text)}"
        if origin is not None
        else "It has no origin that --allowed-origins could name (a file or a sandboxed frame has"
        " none); serve it from one"
    )
    return ForbiddenError(
        f"a web page of {page} may not use this server. {helps}", code=ORIGIN_CODE
    )


def url(asked: Incoming) -> str:
    """Where the request went, as its client wrote it."""
    host = asked.hosts[0] if asked.hosts else "localhost"
    return f"{asked.scheme}://{shown(host)}{shown(asked.path)}"


def shown(text: str) -> str:
    """A stranger's text in a message: bounded, and without control characters."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= SHOWN_CHARACTERS else clean[:SHOWN_CHARACTERS] + "..."
