"""Ticks and scales."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from mlxfleet.bench.report.axis import Axis, axis_for, linear_ticks, log_ticks, round_step, short

VALUES = st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20)
SPANS = st.floats(1e-6, 1e9)


@given(VALUES)
def test_an_axis_holds_all_its_values(values: list[float]) -> None:
    axis = axis_for(values, "x")
    assert axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values)
    assert all(0 <= axis.share(value) <= 1 for value in values)


@given(VALUES, st.booleans())
@example([5e-324], False)
@example([0.0, 5e-324], False)
def test_an_axis_keeps_the_order(values: list[float], zero: bool) -> None:
    axis = axis_for(values, "x", zero=zero)
    shares = [axis.share(value) for value in sorted(values)]
    assert shares == sorted(shares)


@given(POSITIVE, st.booleans())
def test_ends_are_at_the_ends_and_ticks_between_them(values: list[float], log: bool) -> None:
    axis = axis_for(values, "x", log=log)
    assert axis.share(axis.low) == 0
    assert math.isclose(axis.share(axis.high), 1)
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 3 * axis.count
    room = 1e-9 * (axis.high - axis.low)
    assert all(axis.low - room <= tick <= axis.high + room for tick in ticks)


@given(SPANS, st.integers(2, 12))
def test_a_step_is_round_and_cuts_about_as_often_as_asked(span: float, count: int) -> None:
    step = round_step(span, count)
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(math.isclose(leading, digit, rel_tol=1e-9) for digit in (1, 2, 5, 10))
    assert count / 1.6 <= span / step <= count * 1.6


def test_ticks_are_multiples_of_a_step() -> None:
    assert linear_ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert log_ticks(1.0, 1000.0) == [1, 10, 100, 1000]
    assert log_ticks(10.0, 100.0) == [10, 20, 50, 100]


def test_values_that_spread_widely_get_a_logarithmic_axis() -> None:
    assert axis_for([1.0, 100.0], "ms").log
    assert not axis_for([1.0, 20.0], "ms").log
    assert not axis_for([0.0, 1000.0], "ms").log


def test_a_logarithmic_axis_gives_equal_room_to_equal_factors() -> None:
    axis = Axis("ms", 1.0, 100.0, log=True)
    assert math.isclose(axis.share(10.0), 0.5)


def test_numbers_beside_ticks_are_short() -> None:
    assert [short(x) for x in (0.25, 100.0, 12_000.0, 2.5e6)] == ["0.25", "100", "12k", "2.5M"]
