"""What passes are padded to follows the library and its threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlxfleet.common.blas import find_openblas, worker_environment

CODE = """
from mlxfleet.workers import openblas
tiles = [openblas.row_tile()]
openblas.set_threads(1)
print(*tiles, openblas.row_tile(), openblas.threads(), openblas.core_name().decode() or "none")
"""


def told(environment: dict[str, str]) -> list[str]:
    """What a process with this environment says."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(find_openblas() is None, reason="there is no OpenBLAS")
def test_the_tile_follows_the_threads() -> None:
    two, one, threads, core = told({**os.environ, **worker_environment(2)})
    assert (two, one, threads) == ("16", "4", "1")
    assert core != "none"


def test_nothing_is_padded_without_openblas() -> None:
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    assert told(plain) == ["1", "1", "0", "none"]
