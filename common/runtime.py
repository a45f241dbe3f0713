"""The private folder in which a fleet's sockets and orders live."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

# macOS allows 104 bytes for a socket's path, and its own temporary folder takes half of them.
RUNTIME_PARENT = "/tmp"
RUNTIME_PREFIX = "mlxfleet-"


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder that only this user can enter, gone at the end."""
    remove_stale_runtimes()
    folder = Path(tempfile.mkdtemp(prefix=f"{RUNTIME_PREFIX}{os.getpid()}-", dir=RUNTIME_PARENT))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale_runtimes() -> None:
    """Remove what a launch that was killed left behind; it can hold API keys."""
    for folder in Path(RUNTIME_PARENT).glob(f"{RUNTIME_PREFIX}*-*"):
        owner = folder.name.removeprefix(RUNTIME_PREFIX).partition("-")[0]
        if not owner.isdigit() or psutil.pid_exists(int(owner)):
            continue
        # Another launch may be removing it too.
        with contextlib.suppress(OSError):
            if folder.is_dir() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder)
