"""Samples of a border, given to its runs."""

from __future__ import annotations

import time

import pytest

from mlxfleet.bench.offline.sensed import Sensed
from mlxfleet.bench.records import Sample
from mlxfleet.common.messages import Telemetry


def test_a_run_has_its_samples_and_what_was_known_when_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    sensed = Sensed()
    for at_s in (0.0, 1.0, 2.0, 3.0):
        sensed.add(Sample(run="", at_s=at_s, node="", telemetry=Telemetry(source="psutil")))
    now += 3.5
    assert [sample.at_s for sample in sensed.of_run("a", 2.0)] == [0.0, 0.5, 1.5]
    assert [(sample.run, sample.at_s) for sample in sensed.of_run("b", 0.1)] == [("b", 0.0)]
    assert [sample.at_s for sample in sensed.of_run("c", 3.5)] == [0.0, 1.0, 2.0, 3.0]


def test_nothing_is_known_before_the_first_sample() -> None:
    assert Sensed().of_run("a", 1.0) == []
