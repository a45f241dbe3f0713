"""What a worker says of its loading, and how it is put in words."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from mlxfleet.common.load_progress import describe
from mlxfleet.common.messages import LoadProgress
from mlxfleet.workers.load_report import LOG_S, REPORT_S, LoadReport
from mlxfleet.workers.sim_faults import LOOK_S, Faults
from mlxfleet.workers.sim_load import SimLoad
from tests.router.reports import make_model

MODEL = msgspec.structs.replace(make_model(), weights_bytes=98_000_000_000)


class Reported:
    """A LoadReport on a clock that is set, and what it has sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[LoadProgress] = []
        self.report = LoadReport(self.sent.append, now=lambda: self.now)

    @property
    def words(self) -> str:
        """What was said last."""
        return describe(self.sent[-1])


def test_progress_is_put_in_words() -> None:
    loading = Reported()
    report = loading.report
    report.begin("starting")
    assert loading.words == "loading, starting"
    report.knows_model(context_length=100, total_bytes=98_000_000_000)
    report.begin("reading")
    assert loading.words == "loading 98 GB, 0 of 98"
    assert loading.sent[-1].context_length == 100
    loading.now += 20.0
    report.loaded(31_000_000_000)
    assert loading.words == "loading 98 GB, 31 of 98, about 43 s"
    report.begin("testing")
    assert loading.words == "loading, testing the model"


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (
            LoadProgress(
                stage="quantizing", loaded_bytes=10**9, total_bytes=4 * 10**9, remaining_s=150.0
            ),
            "loading and quantizing 4.0 GB, 1.0 of 4.0, about 2 min",
        ),
        (
            LoadProgress(stage="reading", loaded_bytes=10**8, total_bytes=5 * 10**8),
            "loading 500 MB, 100 of 500",
        ),
        (LoadProgress(stage="measuring", total_bytes=10**9), "loading, measuring passes"),
    ],
)
def test_small_models_and_other_stages(progress: LoadProgress, words: str) -> None:
    assert describe(progress) == words


def test_the_rate_is_bounded_but_each_stage_is_said_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loading = Reported()
    with caplog.at_level(logging.INFO):
        loading.report.begin("starting")
        loading.report.knows_model(context_length=1, total_bytes=10_000)
        loading.report.begin("reading")
        for _ in range(1000):
            loading.now += LOG_S / 500
            loading.report.loaded(10)
        loading.report.begin("testing")
    spent_s = 2 * LOG_S
    assert spent_s / REPORT_S * 0.9 < len(loading.sent) <= spent_s / REPORT_S + 3
    assert 4 <= len(caplog.records) <= 5
    assert loading.sent[-1].loaded_bytes == 10_000


def test_nothing_is_said_without_progress() -> None:
    loading = Reported()
    loading.report.begin("reading")
    before = len(loading.sent)
    loading.now += 1000.0
    assert len(loading.sent) == before
    loading.report.step()
    assert loading.sent[-1].done == 1


def test_a_simulated_model_takes_its_time(tmp_path: Path) -> None:
    loading = Reported()
    faults = Faults(tmp_path / "faults", "node-0")
    load = SimLoad(MODEL, 10.0, faults, loading.report, clock=lambda: loading.now)
    while (rest_s := load.turn()) > 0:
        assert loading.now < 20.0
        loading.now += rest_s
    assert loading.now == pytest.approx(10.0)
    assert loading.report.progress.loaded_bytes == pytest.approx(MODEL.weights_bytes, abs=1000)
    assert loading.report.progress.context_length == MODEL.context_length
    assert loading.sent[-1].stage == "reading"


def test_a_simulated_load_stands_still_while_its_node_hangs(tmp_path: Path) -> None:
    loading = Reported()
    file = tmp_path / "faults"
    load = SimLoad(MODEL, 10.0, Faults(file, "n"), loading.report, clock=lambda: loading.now)
    file.write_text("n hang")
    loading.now += LOOK_S
    assert load.turn() > 0
    before = loading.report.progress
    loading.now += 100.0
    assert load.turn() > 0
    assert loading.report.progress == before
    file.unlink()
    for _ in range(2):
        loading.now += 10.0
        load.turn()
    assert load.turn() == 0


def test_no_time_takes_no_turn(tmp_path: Path) -> None:
    faults = Faults(None, "n")
    assert SimLoad(MODEL, 0.0, faults, LoadReport(lambda _: None)).turn() == 0
