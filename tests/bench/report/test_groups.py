"""Runs put together by side and load, and one side against the best of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.report.distributions import cumulative
from mlxfleet.bench.report.figures import OUTPUT_RATE, name_of
from mlxfleet.bench.report.groups import groups_of, load_of
from mlxfleet.bench.report.loaded import load_files
from mlxfleet.bench.report.ratios import ratios
from tests.bench.report.sample_records import comparison, sweep, write


def test_sides_and_loads_of_one_model_are_a_group(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sweep({"one": 1.0, "two": 2.0}, [8, 1], rounds=2))
    [group] = groups_of(load_files([path]))
    assert group.sides == ["one", "two"]
    assert [load.words for load in group.loads] == ["1 stream", "8 streams"]
    assert len(group.values(OUTPUT_RATE, "two", group.loads[1])) == 2


def test_ratio_is_to_the_side_that_is_best_in_the_figure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sweep({"ours": 1.0, "slow": 4.0, "fast": 2.0}, [8]))
    [group] = groups_of(load_files([path]))
    found = {ratio.figure.path: ratio for ratio in ratios(group, "ours")}
    assert found["output_tokens_per_s"].best_side == "fast"
    assert found["output_tokens_per_s"].value == pytest.approx(2.0, rel=0.15)
    assert found["itl_ms.p50"].best_side == "fast"
    assert found["itl_ms.p50"].value == pytest.approx(0.5, rel=0.15)


def test_without_another_side_there_are_no_ratios(tmp_path: Path) -> None:
    [group] = groups_of(load_files([write(tmp_path / "a.jsonl", sweep({"ours": 1.0}, [8]))]))
    assert ratios(group, "ours") == []


def test_runs_that_were_thrown_out_are_in_no_group(tmp_path: Path) -> None:
    [group] = groups_of(load_files([write(tmp_path / "a.jsonl", comparison(3))]))
    assert len(group.runs) == 12


def test_each_comparison_is_a_group_of_its_own(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", comparison()) for name in ("one", "other")]
    groups = groups_of(load_files(files))
    assert [group.sides for group in groups] == [["A", "B"], ["A", "B"]]


def test_a_load_is_told_in_words() -> None:
    assert load_of({"kind": "closed_loop", "concurrency": 1}).words == "1 stream"
    poisson = {"kind": "open_loop", "request_rate": 2.5, "burstiness": 1.0}
    assert load_of(poisson).words == "2.5 req/s"
    assert load_of({**poisson, "burstiness": 0.5}).words == "2.5 req/s, burstiness 0.5"
    assert load_of({**poisson, "request_rate": None}).words == "all at once"
    assert load_of({"kind": "replay", "trace_speed": 2}).words == "trace, 2 times as fast"


def test_figures_are_called_by_their_names() -> None:
    assert name_of(OUTPUT_RATE) == "output tokens/s"
    assert name_of(Figure("ttft_ms.p50")) == "TTFT p50"
    assert name_of(Figure("within_slos")) == "share within SLOs"


def test_cumulative_shares_end_at_all() -> None:
    points = cumulative([float(i) for i in range(1000)], points=50)
    assert len(points) == 51
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (999.0, 100.0)
    assert points == sorted(points)
