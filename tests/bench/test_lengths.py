"""Lengths as they are given on the command line."""

from __future__ import annotations

import contextlib
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.bench.lengths import parse_lengths
from mlxfleet.common.errors import ConfigError


def draws(text: str, count: int = 2000) -> list[int]:
    lengths, rng = parse_lengths(text, "--input-tokens"), random.Random(0)
    return [lengths.draw(rng) for _ in range(count)]


def test_fixed_and_uniform() -> None:
    assert set(draws("12")) == {12}
    assert set(draws("uniform:3:5")) == {3, 4, 5}


def test_lognormal_has_its_median_and_stays_in_its_borders() -> None:
    found = draws("lognormal:100:0.8:400")
    assert median(found) == pytest.approx(100, rel=0.1)
    assert (min(found) >= 1, max(found)) == (True, 400)
    assert max(draws("lognormal:100:3")) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-3",
        "x",
        "",
        "uniform:5:3",
        "uniform:5",
        "lognormal:10",
        "lognormal:10:-1",
        "a:1",
        "9" * 9,
    ],
)
def test_what_makes_no_sense_is_refused_with_the_flag_and_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--input-tokens .*uniform:LEAST:MOST"):
        parse_lengths(text, "--input-tokens")


@settings(deadline=None)
@given(st.text(max_size=20) | st.from_regex(r"(uniform|lognormal)(:[0-9.e]{1,5}){2,3}"))
def test_any_text_gives_lengths_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_lengths(text, "--output-tokens").draw(random.Random(0)) >= 1
