"""Files with a process's last frames. They hold prompts and answers, so only their user may read
them, and old ones make room for new ones."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from mlxfleet.common.node_identity import state_folder

SUFFIX = ".msgpack"
PARTIAL = ".partial"
MAX_FILES = 200
MAX_BYTES = 1_000_000_000


def dump_folder() -> Path:
    """Where dumps are; made if it is not there. OSError if that is impossible."""
    folder = state_folder() / "dumps"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_dump(process: str, word: str, parts: Iterable[bytes]) -> Path:
    """Write a dump, whose name says when, who and in a `word` why, and remove old ones. OSError if
    that is impossible."""
    folder = dump_folder()
    now = time.time()
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now * 1e6) % 10**6:06}Z"
    path = folder / f"{moment}-{process}-{os.getpid()}-{word}{SUFFIX}"
    partial = path.with_name(path.name + PARTIAL)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(parts)
    partial.rename(path)
    remove_old(folder)
    return path


def remove_old(folder: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Keep the newest dumps that are within both limits, and the newest one in any case."""
    total = 0
    dumps = sorted(folder.glob(f"*{SUFFIX}*"), reverse=True)
    for position, path in enumerate(dumps):
        # Another process may be removing it too.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
            if position > 0 and (position >= max_files or total > max_bytes):
                path.unlink()
