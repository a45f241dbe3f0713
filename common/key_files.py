"""The files of CURVE keys: one key a file, 40 characters of Z85, secrets for their owner only.

`NAME.public` and `NAME.secret` are a pair; the router's is named `router`.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.utils import z85

from mlxfleet.common.errors import ConfigError

ROUTER = "router"
DEFAULT_NODE = "node"
KEY_LENGTH = 40
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def write_keys(out: Path, nodes: Sequence[str]) -> list[Path]:
    """Write the router's pair and one per node into a folder, made if need be.

    ConfigError if a name cannot be used or a file is there already; then nothing is written.
    """
    names = [ROUTER, *nodes]
    for name in names:
        if NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r} cannot name a key: use letters, digits, '.', '_', '-'")
    if len(set(names)) != len(names):
        raise ConfigError(f"--node: every name once, and none of them {ROUTER!r}")
    paths = [out / f"{name}.{kind}" for name in names for kind in ("public", "secret")]
    if taken := [str(path) for path in paths if path.exists()]:
        raise ConfigError(f"{', '.join(taken)}: already there; keys are not overwritten")
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in names:
            public, secret = zmq.curve_keypair()
            write_key(out / f"{name}.secret", secret)
            write_key(out / f"{name}.public", public)
    except OSError as error:
        raise ConfigError(f"cannot write keys into {out}: {error}") from error
    return paths


def write_key(path: Path, key: bytes) -> None:
    """Write a new file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + b"\n")


def read_key(path: Path) -> str:
    """The key in a file. ConfigError if there is none, or a secret that others can read."""
    try:
        text = path.read_text().strip()
        if path.suffix == ".secret":
            refuse_readable("--keys", path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--keys: cannot read {path}: {error}") from error
    if not is_key(text):
        raise ConfigError(f"--keys: {path} does not hold a key of {KEY_LENGTH} characters")
    return text


def refuse_readable(flag: str, path: Path) -> None:
    """ConfigError if others than its owner can read a file with secrets, or write it."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{flag}: others can read {path}; chmod 600 it")


def is_key(text: str) -> bool:
    """Whether a text is a key of 32 bytes in Z85."""
    if len(text) != KEY_LENGTH or not text.isascii():
        return False
    try:
        return len(z85.decode(text.encode())) == 32
    except (KeyError, ValueError, struct.error):
        return False


def accepted_keys(folder: Path) -> dict[str, str]:
    """Names of nodes by their public keys: every public key in a folder but the router's."""
    paths = sorted(p for p in folder.glob("*.public") if p.stem != ROUTER)
    return {read_key(path): path.stem for path in paths}


def node_secret_path(folder: Path, name: str | None) -> Path:
    """A node's secret: the one with its name if there is one, else the only one."""
    if name is not None and (named := folder / f"{name}.secret").exists():
        return named
    found = sorted(p for p in folder.glob("*.secret") if p.stem != ROUTER)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"--keys: there is no secret key of a node in {folder}")
    raise ConfigError(
        f"--keys: several secrets in {folder}, and none is called {name}.secret;"
        " leave only this node's there"
    )
