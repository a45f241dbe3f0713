"""How many connections the system lets a process have."""

from __future__ import annotations

import resource

from mlxfleet.common.errors import ConfigError


def allow_connections(files: int) -> None:
    """Raise the process's limit of open files to this; ConfigError if that is not allowed.

    Terminals on macOS start with 256.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{files} files may be open at once, and {hard} are allowed: raise it with"
            f" `ulimit -Hn`, or have fewer requests at once"
        ) from error
