"""The private folder in which a fleet's sockets and orders live."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlxfleet.common.errors import ConfigError

# macOS allows 104 bytes for a socket's path, and its own temporary folder takes half of them.
RUNTIME_PARENT = "/tmp"
RUNTIME_PREFIX = "mlxfleet-"


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder that only this user can enter, gone at the end. ConfigError if it cannot be made."""
    remove_stale_runtimes()
    prefix = f"{RUNTIME_PREFIX}{os.getpid()}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=RUNTIME_PARENT))
    except OSError as error:
        raise ConfigError(f"cannot make a folder for sockets: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def running_fleets() -> dict[int, Path]:
    """The folders of this user's fleets that run, by the process id of each fleet's parent."""
    return {pid: folder for pid, folder in own_runtimes() if psutil.pid_exists(pid)}


def remove_stale_runtimes() -> None:
    """Remove what a launch that was killed left behind; it can hold API keys."""
    for pid, folder in own_runtimes():
        # Another launch may be removing it too.
        with contextlib.suppress(OSError):
            if not psutil.pid_exists(pid):
                shutil.rmtree(folder)


def own_runtimes() -> Iterator[tuple[int, Path]]:
    """This user's private folders, each with the process that has made it."""
    for folder in Path(RUNTIME_PARENT).glob(f"{RUNTIME_PREFIX}*-*"):
        owner = folder.name.removeprefix(RUNTIME_PREFIX).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            if owner.isdigit() and folder.is_dir() and folder.stat().st_uid == os.getuid():
                yield int(owner), folder
