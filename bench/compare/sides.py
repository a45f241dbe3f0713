"""What is compared: servers that run, or commands that start one."""

from __future__ import annotations

import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass

from mlxfleet.bench.servers import HOST, ServerSpec, free_port
from mlxfleet.common.errors import ConfigError

PORT = "{port}"
NAMES = string.ascii_uppercase[:8]


@dataclass(frozen=True)
class Side:
    """A server: `spec` says how it is started, None if it runs already."""

    name: str
    given: str
    url: str
    spec: ServerSpec | None = None


def parse_sides(given: Sequence[str]) -> list[Side]:
    """Sides called A, B, C and so on. ConfigError if they are too few, too many, or not one is
    understood."""
    if not 2 <= len(given) <= len(NAMES):
        raise ConfigError(f"give 2 to {len(NAMES)} sides, each a URL or a command with {PORT}")
    return [parse_side(name, text) for name, text in zip(NAMES, given, strict=False)]


def parse_side(name: str, given: str) -> Side:
    """A URL as it is; a command split into words as a shell would, but run without one."""
    if given.startswith(("http://", "https://")):
        return Side(name, given, given.rstrip("/"))
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise ConfigError(f"side {name}: {error} in {given!r}") from error
    if not any(PORT in word for word in words):
        raise ConfigError(
            f"side {name}: {given!r} is neither a URL nor a command with {PORT} where it is to be"
            f" told the port, such as 'mlxfleet launch --port {PORT}'"
        )
    port = free_port()
    command = [word.replace(PORT, str(port)) for word in words]
    url = f"http://{HOST}:{port}"
    return Side(name, given, url, ServerSpec(name, command, url))


def sharing(sides: Sequence[Side]) -> set[str]:
    """Names of sides that are the same server as another."""
    urls = [side.url for side in sides]
    return {side.name for side in sides if urls.count(side.url) > 1}
