"""What is checked before anything is started: API keys, who may connect, the port."""

from __future__ import annotations

import ipaddress
import os
import resource
import socket
from pathlib import Path

from mlxfleet.common.config import Keys, RouterOptions, SimOptions
from mlxfleet.common.errors import ConfigError, listen_error
from mlxfleet.common.key_files import refuse_readable

API_KEY_ENV = "MLXFLEET_API_KEY"
ADMIN_KEY_ENV = "MLXFLEET_ADMIN_KEY"
TEMPORARY_ENV = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
# Sockets and files of a front end with a few clients.
LEAST_FILES = 256
# mlx-lm sets this limit when it is imported, and fails where it may not.
LEAST_FILES_MLX = 4096
SECRETS_ENV = (API_KEY_ENV, ADMIN_KEY_ENV)


def least_files(sim: SimOptions) -> int:
    """Files that each process of a fleet or node has to be able to open."""
    return LEAST_FILES_MLX if sim.engine == "mlx" else LEAST_FILES


def check_machine(files: int = LEAST_FILES) -> None:
    """ConfigError if processes could not open so many files, or have no temporary folder."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise ConfigError(
            f"a process may open {hard} files here, and {files} are needed; raise the hard"
            f" limit: `ulimit -Hn {files}` as root, or LimitNOFILE of a service"
        )
    # The first of them that is set is what MLX's compiler takes.
    for name in TEMPORARY_ENV:
        if (folder := os.environ.get(name)) is not None:
            if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
                raise ConfigError(
                    f"{name} is {folder!r}, not a folder that can be written to; make it, or unset"
                    f" {name}"
                )
            return


def read_keys(options: RouterOptions) -> Keys:
    """Accepted keys, from files and the environment; ConfigError if a file is unfit."""
    api = read_key_file("--api-key-file", options.api_key_file)
    admin = read_key_file("--admin-key-file", options.admin_key_file)
    if len(admin) > 1:
        raise ConfigError(f"--admin-key-file: {options.admin_key_file} has more than one key")
    api = (*from_environment(API_KEY_ENV), *api)
    return Keys(api=api, admin=next(iter((*admin, *from_environment(ADMIN_KEY_ENV))), None))


def from_environment(name: str) -> tuple[str, ...]:
    """The key in an environment variable, if there is one."""
    key = os.environ.get(name, "").strip()
    return (key,) if key else ()


def read_key_file(flag: str, path: Path | None) -> tuple[str, ...]:
    """The keys in a file, one a line but for comments. ConfigError if others can read it."""
    if path is None:
        return ()
    try:
        refuse_readable(flag, path)
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: cannot read it: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise ConfigError(f"{flag}: there is no key in {path}")
    return found


def refuse_open_port(options: RouterOptions, keys: Keys) -> None:
    """No key, no public address, unless asked for."""
    if keys.api or options.allow_no_auth or is_loopback(options.host):
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
