"""Models that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxfleet.common.blas import worker_environment
from mlxfleet.common.demo_model import ensure_demo_model


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct, fetched once per machine."""
    return ensure_demo_model()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random llama with the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run(
        [sys.executable, "-m", "mlxfleet.bench.tiny_model", str(folder)],
        check=True,
        env={**os.environ, **worker_environment(None)},
    )
    return folder
