"""The slow-down curve: what it gives, and what is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.slowdown import Slowdown, parse_slowdown


@pytest.mark.parametrize(
    ("seconds", "factor"), [(0, 1.0), (10, 1.0), (20, 1.5), (30, 2.0), (35, 1.25), (1e9, 0.5)]
)
def test_straight_lines_between_points(seconds: float, factor: float) -> None:
    curve = parse_slowdown("10:1, 30:2,40:0.5")
    assert curve.factor(seconds) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not SECONDS:FACTOR"),
        ("1", "'1' is not SECONDS:FACTOR"),
        ("0:1,", "'' is not SECONDS:FACTOR"),
        ("a:1", "'a:1' is not SECONDS:FACTOR"),
        ("0:1:2", "'0:1:2' is not SECONDS:FACTOR"),
        ("-1:1", "-1 is not a number of seconds"),
        ("nan:1", "nan is not a number of seconds"),
        ("0:0", "a factor is 0.01 to 1000, not 0"),
        ("0:nan", "a factor is 0.01 to 1000, not nan"),
        ("5:1,5:2", "5 s does not come after 5 s"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^--sim-slowdown: {why}") as caught:
        parse_slowdown(text)
    assert "0:1,60:1.3" in str(caught.value)


POINTS = st.lists(
    st.tuples(st.integers(0, 10_000), st.floats(0.01, 1000.0)), min_size=1, unique_by=lambda p: p[0]
).map(sorted)


@given(points=POINTS, seconds=st.floats(0, 20_000))
def test_a_curve_survives_its_text_and_stays_between_its_points(
    points: list[tuple[int, float]], seconds: float
) -> None:
    curve = parse_slowdown(",".join(f"{at}:{factor!r}" for at, factor in points))
    assert curve == Slowdown(tuple((float(at), factor) for at, factor in points))
    factors = [factor for _, factor in points]
    assert min(factors) * 0.999 <= curve.factor(seconds) <= max(factors) * 1.001
    for (at, factor), _ in itertools.pairwise([*points, points[-1]]):
        assert curve.factor(at) == pytest.approx(factor)
