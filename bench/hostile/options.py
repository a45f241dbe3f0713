"""What is sent, to what, and how much the server may grow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cyclopts


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    requests: int = 3_000
    """Hostile requests."""

    seed: int | None = None
    """Of the requests; random, and printed, if not given."""

    only: int | None = None
    """Send only the request of this index, and show what is answered."""

    model: Path | None = None
    """MLX model folder of the server; a tiny random llama if not given."""

    url: str | None = None
    """A server that runs already, instead of one that is started. Its processes are not watched."""

    at_once: int = 16
    """Connections with hostile requests."""

    good: int = 2
    """Clients that ask good requests meanwhile, whose answers are compared."""

    growth_mb: float = 48.0
    """A process may be so much larger in the end than after a tenth of the requests; a worker,
    which fills its caches, may use the memory that it has planned."""

    largest_mb: float = 300.0
    """No process but the worker may ever be larger."""

    logs: Path | None = None
    """Folder for the server's output; a temporary one, kept after findings, if not given."""
