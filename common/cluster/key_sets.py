"""Which CURVE keys a cluster needs, and which of them each host gets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import zmq

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.key_files import ROUTER, write_key

KEYS_FOLDER = "keys"


def ensure_keys(folder: Path, nodes: Iterable[str]) -> list[str]:
    """Make the pairs that are missing, as `mlxfleet keys` does; their names. ConfigError if half
    of a pair is there, or nothing can be written."""
    made = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (ROUTER, *nodes):
            files = [folder / f"{name}.{kind}" for kind in ("public", "secret")]
            there = [file.exists() for file in files]
            if all(there):
                continue
            if any(there):
                raise ConfigError(f"{folder} holds one half of the keys of {name}; remove it")
            public, secret = zmq.curve_keypair()
            write_key(files[1], secret)
            write_key(files[0], public)
            made.append(name)
    except OSError as error:
        raise ConfigError(f"cannot write keys into {folder}: {error}") from error
    return made


def front_keys(folder: Path) -> dict[str, bytes]:
    """What the front end gets: its own pair."""
    return contents(folder, [f"{ROUTER}.public", f"{ROUTER}.secret"])


def accepted_keys(folder: Path, nodes: Iterable[str]) -> dict[str, bytes]:
    """Who may join the front end. It reads them again when an unknown node comes."""
    return contents(folder, [f"{node}.public" for node in nodes])


def node_keys(folder: Path, node: str) -> dict[str, bytes]:
    """What a node gets: its own pair, and how to know the front end."""
    return contents(folder, [f"{ROUTER}.public", f"{node}.public", f"{node}.secret"])


def contents(folder: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Files by their path in a unit's folder of files."""
    return {f"{KEYS_FOLDER}/{name}": (folder / name).read_bytes() for name in wanted}
