"""Ratios of blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.bench.report.block_ratios import Row, rows_of
from mlxfleet.bench.report.loaded import load_files
from tests.bench.report.sample_records import comparison, write


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    """All figures of B against A."""
    loaded = load_files([write(tmp_path / "a.jsonl", comparison(4))])
    return {row.figure.path: row for row in rows_of(loaded, loaded.comparisons[0], "B")}


def test_every_block_has_a_ratio_and_rounds_thrown_out_have_their_own(
    rows: dict[str, Row],
) -> None:
    ratios = rows["output_tokens_per_s"].ratios
    assert [ratio.block for ratio in ratios if not ratio.thrown_out] == [0, 1, 2, 3]
    assert [ratio.block for ratio in ratios if ratio.thrown_out] == [2]


def test_more_than_one_is_better_of_rates_and_of_times(rows: dict[str, Row]) -> None:
    for path in ("output_tokens_per_s", "tpot_ms.p50"):
        counted = [ratio.value for ratio in rows[path].ratios if not ratio.thrown_out]
        assert 1.0 < sum(counted) / len(counted) < 1.1


def test_what_was_compared_comes_first_and_has_the_verdict(rows: dict[str, Row]) -> None:
    first, second, *_ = rows.values()
    assert first.verdict is not None
    assert first.middle == first.verdict.ratio
    assert second.verdict is None
