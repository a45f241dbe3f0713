"""What is checked before anything is started: API keys, who may connect, the port."""

from __future__ import annotations

import ipaddress
import os
import socket

from mlxfleet.common.config import RouterOptions
from mlxfleet.common.errors import ConfigError, listen_error

API_KEY_ENV = "MLXFLEET_API_KEY"


def read_api_keys(options: RouterOptions) -> tuple[str, ...]:
    """Accepted API keys, from the file and the environment; ConfigError if the file is unfit."""
    keys = [os.environ.get(API_KEY_ENV, "").strip()]
    if options.api_key_file is not None:
        try:
            keys += options.api_key_file.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: cannot read it: {error}") from error
    found = tuple(key.strip() for key in keys if key.strip() and not key.startswith("#"))
    if options.api_key_file is not None and not found:
        raise ConfigError(f"--api-key-file: there is no key in {options.api_key_file}")
    return found


def refuse_open_port(options: RouterOptions, keys: tuple[str, ...]) -> None:
    """No key, no public address, unless asked for."""
    if keys or options.allow_no_auth or is_loopback(options.host):
        return
    raise ConfigError(
        f"--host {options.host} is open to others and there is no API key. Give --api-key-file"
        f" or {API_KEY_ENV}, or --allow-no-auth if that is meant"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(options: RouterOptions) -> int:
    """The port to listen on, a free one for port 0. Fails before the model is loaded if it is
    taken; a router that is restarted takes the same one again."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise listen_error(options.host, options.port, error) from error
        return int(probe.getsockname()[1])
