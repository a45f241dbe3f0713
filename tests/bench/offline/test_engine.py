"""Options of the measured engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.bench.offline.engine import Engine, flags_of
from mlxfleet.common.config import SchedulerOptions, WorkerOptions
from mlxfleet.common.errors import ConfigError


def test_options_are_passed_on_as_flags_where_they_are_not_the_defaults() -> None:
    assert flags_of(SchedulerOptions()) == []
    assert flags_of(SchedulerOptions(max_running=64)) == ["--max-running=64"]
    options = WorkerOptions(quantize="q4", trust_remote_code=True)
    assert flags_of(options) == ["--quantize=q4", "--trust-remote-code"]


def test_streams_that_would_wait_for_each_other_are_refused() -> None:
    engine = Engine(model_dir=Path("model"), name="model")
    assert engine.checked(32) is engine
    with pytest.raises(ConfigError, match="--max-running 33"):
        engine.checked(33)
