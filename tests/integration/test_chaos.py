"""A minute of random faults, always the same ones. Campaigns with other seeds are run by command:
`python -m mlxfleet.bench.chaos --tiny all`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SEED = 17
FAULTS = 10
LEAST_FAULTS = 4
TIMEOUT_S = 240
SHORT = ("--rounds", "1", "--streams", "16", "--longest", "250")


def chaos(model: Path, logs: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator would."""
    command = [sys.executable, "-m", "mlxfleet.bench.chaos", "--model", str(model)]
    command += ["--seed", str(SEED), "--logs", str(logs), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("mode", ["launch", "tcp"])
def test_faults_change_no_answer(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    load = ["--streams", "10", "--requests", "20", "--longest", "120", "--no-noticing"]
    limits = ["--mode", mode, "--nodes", "2", "--faults", str(FAULTS), "--seconds", "15"]
    run = chaos(tiny_model, tmp_path, *limits, *load)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"seed {SEED}; findings: 0" in run.stdout
    made = re.findall(rf"(\d+)/{FAULTS} faults", run.stdout + run.stderr)
    assert int(made[-1]) >= LEAST_FAULTS


def test_drains_to_and_fro_double_no_token(tiny_model: Path, tmp_path: Path) -> None:
    run = chaos(tiny_model, tmp_path, "--scenario", "drain-swing", *SHORT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 wrong, 0 doubled" in run.stdout
