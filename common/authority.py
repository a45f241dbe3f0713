"""Hosts and origins as HTTP requests name them: `Host: HOST[:PORT]`, `Origin: SCHEME://HOST[:PORT]`.

Both come from strangers, so everything that is not exactly of this form is None.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

MAX_REMEMBERED = 256
MAX_LENGTH = 512
LARGEST_PORT = 65535
AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)(?:%[\w.~%-]+)?\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d{0,5}))?",
    re.ASCII,
)
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")
ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\\,\s]*)")
DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A host, in lower case and without the root's dot, and its port if one is given."""

    host: str
    port: int | None
    is_ip: bool


class Origin(NamedTuple):
    """Where a web page comes from, as browsers write it. `authority` is None for schemes other
    than http and https, whose hosts are no machines (`app://obsidian.md`)."""

    text: str
    scheme: str
    authority: Authority | None


@lru_cache(maxsize=MAX_REMEMBERED)
def parse_authority(text: str) -> Authority | None:
    """The value of a Host header. IPv6 addresses stand in brackets, a zone is left out."""
    found = AUTHORITY.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > LARGEST_PORT:
        return None
    if (v6 := found["v6"]) is not None:
        return Authority(v6, port, True) if (v6 := ip_address(v6)) else None
    if v4 := ip_address(found["host"]):
        return Authority(v4, port, True)
    name = host_name(found["host"])
    return Authority(name, port, False) if name else None


def ip_address(text: str) -> str | None:
    """An IP address in its usual form: `::0001` is `::1`."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def host_name(text: str) -> str | None:
    """A host name in lower case, without the root's dot."""
    name = text.lower().removesuffix(".") if text.isascii() else ""
    return name if len(name) < 254 and NAME.fullmatch(name) else None


def parse_origin(text: str) -> Origin | None:
    """The value of an Origin header; None for `null`, which every sandboxed page sends."""
    lower = text.lower()
    printable = text.isascii() and text.isprintable() and len(text) <= MAX_LENGTH
    found = ORIGIN.fullmatch(lower) if printable else None
    if found is None:
        return None
    scheme, host = found["scheme"], found["host"]
    if scheme not in DEFAULT_PORTS:
        return Origin(lower, scheme, None)
    authority = parse_authority(host)
    if authority is None:
        return None
    shown = f"[{authority.host}]" if ":" in authority.host else authority.host
    port = authority.port if authority.port != DEFAULT_PORTS[scheme] else None
    return Origin(f"{scheme}://{shown}" + (f":{port}" if port else ""), scheme, authority)


def is_same(origin: Origin, host: Authority) -> bool:
    """Whether a page was loaded from the host and port to which its request goes. The scheme may
    differ: a proxy in front may speak https."""
    if origin.authority is None:
        return False
    default = DEFAULT_PORTS[origin.scheme]
    ports = origin.authority.port or default, host.port or default
    return origin.authority.host == host.host and ports[0] == ports[1]


def is_loopback_name(host: str) -> bool:
    """Whether a name means this machine on every machine (RFC 6761)."""
    return host == "localhost" or host.endswith(".localhost")
