"""The private folder in which a fleet's sockets and orders live."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# macOS allows 104 bytes for a socket's path, and its own temporary folder takes half of them.
RUNTIME_PARENT = "/tmp"
RUNTIME_PREFIX = "mlxfleet-"


@contextmanager
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
        ours = folder.is_dir() and folder.stat().st_uid == os.getuid()
        if ours and owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
