"""Who a node is: a name that stays, and what its machine is."""

from __future__ import annotations

import os
import platform
import re
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import platformdirs
import psutil

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.key_files import NAME
from mlxfleet.common.messages import NodeInfo
from mlxfleet.common.tokenizer_files import tokenizer_hash

STATE_ENV = "MLXFLEET_STATE"
NAME_FILE = "node-name"
SYSCTL_TIMEOUT_S = 5.0


def node_name(given: str | None) -> str:
    """The name that was given, or this machine's, which is made once and kept.

    ConfigError if it has other characters than letters, digits, '.', '_', '-'.
    """
    if given is None:
        return machine_name()
    if NAME.fullmatch(given) is None:
        raise ConfigError(
            f"--name: {given!r} may have letters, digits, '.', '_' and '-', 63 at most"
        )
    return given


def machine_name() -> str:
    """Host name and four digits that tell two hosts of one name apart."""
    folder = state_folder()
    path = folder / NAME_FILE
    try:
        if path.exists() and NAME.fullmatch(kept := path.read_text().strip()):
            return kept
        host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().split(".")[0])[:50].strip("-")
        name = f"{host or 'node'}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(name + "\n")
    except OSError as error:
        raise ConfigError(
            f"cannot keep this node's name in {path}: {error}; give --name"
        ) from error
    return name


def state_folder() -> Path:
    """Where what has to outlive a run is kept."""
    if (given := os.environ.get(STATE_ENV)) is not None:
        return Path(given)
    return platformdirs.user_state_path("mlxfleet")


def node_info(model: str, model_dir: Path) -> NodeInfo:
    """What a node on this machine tells the router; new in every run."""
    return NodeInfo(
        instance=secrets.token_hex(6),
        model=model,
        tokenizer_hash=tokenizer_hash(model_dir),
        host=socket.gethostname(),
        chip=chip(),
        memory_bytes=psutil.virtual_memory().total,
    )


def chip() -> str:
    """The processor's name, as far as the system tells it."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SYSCTL_TIMEOUT_S, check=True
            )
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
