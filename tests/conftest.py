"""Models that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxfleet.common.blas import worker_environment
from mlxfleet.common.demo_model import ensure_demo_model
from mlxfleet.common.node_identity import STATE_ENV


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What outlives a run, like what crashes leave, is kept away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_ENV, str(tmp_path_factory.mktemp("state")))
        yield


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
