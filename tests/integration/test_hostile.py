"""Half a minute of hostile requests, always the same ones. Campaigns with other seeds are run by
command: `python -m mlxfleet.bench.hostile --requests 10000`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SEED = 17
REQUESTS = 800
TIMEOUT_S = 240


def test_hostile_requests_harm_nobody(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlxfleet.bench.hostile", "--model", str(tiny_model)]
    command += ["--seed", str(SEED), "--requests", str(REQUESTS), "--logs", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"seed {SEED}; findings: 0" in run.stdout
