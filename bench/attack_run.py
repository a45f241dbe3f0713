"""What the commands that attack a fleet have in common: a seed that is printed, a folder for the
output of the servers, an end in order, and an exit status."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console

from mlxfleet.bench.error_groups import leaves
from mlxfleet.bench.interrupts import cancel_on_signals
from mlxfleet.common.errors import MlxfleetError

SEED_BITS = 32
INTERRUPTED = 130

Attack = Callable[[int, Path, Console], Coroutine[Any, Any, int]]


def run_attack(tool: str, attack: Attack, *, seed: int | None, logs: Path | None) -> None:
    """Run an attack, which takes a seed, a folder and where to tell of progress, and returns the
    number of findings; then exit, with 1 if there are any.

    Without `seed` it is a random one. Without `logs` the folder is a temporary one, which is kept
    after findings. Ctrl-C and SIGTERM cancel the attack, which ends its servers.
    """
    seed = random.getrandbits(SEED_BITS) if seed is None else seed
    print(f"seed {seed}; to repeat: --seed {seed}", flush=True)
    folder = logs or Path(tempfile.mkdtemp(prefix=f"mlxfleet-{tool}-"))
    folder.mkdir(parents=True, exist_ok=True)
    console, status = Console(stderr=True), 1
    try:
        found = uvloop.run(cancellable(attack(seed, folder, console)))
        print(f"seed {seed}; findings: {found}")
        status = 1 if found else 0
    except* (MlxfleetError, aiohttp.ClientError, OSError) as errors:
        for error in leaves(errors):
            console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        print(f"seed {seed}; ended early")
    except* asyncio.CancelledError:
        print(f"seed {seed}; interrupted")
        status = INTERRUPTED
    if logs is None and status == 0:
        shutil.rmtree(folder)
    else:
        print(f"output of the servers: {folder}")
    sys.exit(status)


async def cancellable(attack: Coroutine[Any, Any, int]) -> int:
    """An attack that Ctrl-C and SIGTERM cancel."""
    cancel_on_signals()
    return await attack
