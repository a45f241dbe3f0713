"""`--allowed-hosts` and `--allowed-origins`: lists of names and patterns, checked at the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mlxfleet.common.authority import Origin, host_name, ip_address, parse_origin
from mlxfleet.common.config import RouterOptions
from mlxfleet.common.errors import ConfigError

ANY = "*"


class AllowedHosts:
    """Names, `*.NAME` for all names below one, and `*` for all."""

    def __init__(self, values: Iterable[str]) -> None:
        """ConfigError if one is none of these."""
        self._patterns = frozenset(map(host_pattern, entries(values)))

    def __contains__(self, host: str) -> bool:
        """Whether a name, in lower case, is allowed."""
        labels = host.split(".")
        parents = {f"{ANY}.{'.'.join(labels[i:])}" for i in range(1, len(labels))}
        return not self._patterns.isdisjoint({host, ANY, *parents})


class AllowedOrigins:
    """Origins, `SCHEME://*` for all of a scheme, and `*` for all, `null` among them."""

    def __init__(self, values: Iterable[str]) -> None:
        """ConfigError if one is none of these."""
        self._patterns = frozenset(map(origin_pattern, entries(values)))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def any(self) -> bool:
        """Whether every page is allowed."""
        return ANY in self._patterns

    def __contains__(self, origin: Origin | None) -> bool:
        """Whether an origin is allowed; None is one that is `null` or malformed."""
        if self.any or origin is None:
            return self.any
        return not self._patterns.isdisjoint({origin.text, f"{origin.scheme}://{ANY}"})


def entries(values: Iterable[str]) -> list[str]:
    """The entries of a list that is given as several values, with commas, or both."""
    parts = (part.strip() for value in values for part in value.split(","))
    return [part for part in parts if part]


def host_pattern(text: str) -> str:
    """An entry of --allowed-hosts in lower case."""
    name = host_name(text.removeprefix(f"{ANY}."))
    if text == ANY or ip_address(text):
        return text
    if name is None:
        raise ConfigError(
            "--allowed-hosts: expected names without scheme and port, such as studio.lan, *.lan or"
            f" *, got {text!r}"
        )
    return f"{ANY}.{name}" if text.startswith(f"{ANY}.") else name


def origin_pattern(text: str) -> str:
    """An entry of --allowed-origins in the form in which browsers send it."""
    if text == ANY:
        return text
    scheme, separator, host = text.partition("://")
    whole_scheme = host == ANY
    host = "any" if whole_scheme else host.removesuffix("/")
    origin = parse_origin(f"{scheme}{separator}{host}")
    if origin is None or ANY in origin.text:
        raise ConfigError(
            "--allowed-origins: expected origins such as https://chat.lan:8443, app://obsidian.md,"
            f" vscode-webview://* or *, got {text!r}"
        )
    return f"{origin.scheme}://{ANY}" if whole_scheme else origin.text


def check_allowed(options: RouterOptions) -> None:
    """ConfigError if an entry of one of the lists is malformed."""
    AllowedHosts(options.allowed_hosts)
    AllowedOrigins(options.allowed_origins)


def reachable_as(options: RouterOptions, *hosts: str) -> RouterOptions:
    """The options with further host names allowed: those under which we say that we are there.
    What is no name, like an address or `*`, needs no permission."""
    names = [name for host in hosts if (name := host_name(host)) and not ip_address(host)]
    return dataclasses.replace(options, allowed_hosts=(*options.allowed_hosts, *names))
