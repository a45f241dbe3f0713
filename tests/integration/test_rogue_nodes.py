"""Rogue nodes in a fleet of real processes: the campaign of `bench.rogue`, short and with a fixed
seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("boasts and swallows", "knows nothing", "token 2^63", "makes up streams")


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
def test_rogue_nodes_are_fenced_and_every_stream_ends_right(tiny_model: Path) -> None:
    chosen = [argument for kind in KINDS for argument in ("--only", kind)]
    load = [
        "--seed",
        "17",
        "--rounds",
        "1",
        "--mutations",
        "40",
        "--streams",
        "6",
        "--max-tokens",
        "40",
    ]
    command = [sys.executable, "-m", "mlxfleet.bench.rogue", "--model", str(tiny_model)]
    done = subprocess.run(
        [*command, *load, *chosen, "--", "--engine", "sim", "--sim-step-ms", "5"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout
