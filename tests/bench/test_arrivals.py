"""When requests are due."""

from __future__ import annotations

import random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.arrivals import gamma_times, replay_times
from mlxfleet.common.errors import ConfigError


def gaps(burstiness: float) -> list[float]:
    times = gamma_times(20.0, burstiness, 20_000, random.Random(0))
    return [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_rate_holds_and_burstiness_is_the_inverse_of_the_squared_variation(
    burstiness: float,
) -> None:
    found = gaps(burstiness)
    assert fmean(found) == pytest.approx(1 / 20, rel=0.05)
    assert (fmean(found) / pstdev(found)) ** 2 == pytest.approx(burstiness, rel=0.1)


def test_infinite_rate_is_all_at_once() -> None:
    assert gamma_times(float("inf"), 1.0, 3, random.Random(0)) == [0.0] * 3


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_replay_begins_at_once_and_keeps_proportions(times: list[float], speed: float) -> None:
    times.sort()
    found = replay_times(times, speed)
    assert found[0] == 0
    assert found[-1] == pytest.approx((times[-1] - times[0]) / speed)
    assert found == sorted(found)


def test_replay_refuses_times_out_of_order() -> None:
    with pytest.raises(ConfigError, match="ascending"):
        replay_times([1.0, 0.5], 1.0)
