"""The index of the largest logit is right, whatever the logits are and however they lie."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.workers import cpu_argmax, openblas
from mlxfleet.workers.cpu_argmax import (
    MOST_COLUMNS,
    NOT_FINITE,
    argmax,
    argmax_by_columns,
    argmax_by_rows,
)
from mlxfleet.workers.cpu_linear import FEW_ROWS, LEAST_VOCABULARY, head

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="for machines without Metal")
quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def floats(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), dtype=np.float64)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("logits_by_columns", [False, True])
def test_argmax_is_right_however_the_logits_lie(rows: int, logits_by_columns: bool) -> None:
    logits = (
        normal(LEAST_VOCABULARY, rows).T if logits_by_columns else normal(rows, LEAST_VOCABULARY)
    )
    expected = floats(logits).argmax(-1).tolist()
    for found in (argmax_by_columns(logits), argmax_by_rows(logits)):
        assert found.tolist() == expected


def test_argmax_follows_the_loaded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cpu_argmax, "argmax_by_columns", lambda _: asked.append("columns"))
    monkeypatch.setattr(cpu_argmax, "argmax_by_rows", lambda _: asked.append("rows"))
    monkeypatch.setattr(head, "narrow", False)
    argmax(normal(FEW_ROWS + 1, LEAST_VOCABULARY))
    monkeypatch.setattr(head, "narrow", True)
    monkeypatch.setattr(openblas, "threads", lambda: 1)
    argmax(normal(FEW_ROWS + 1, LEAST_VOCABULARY))
    assert asked == ["rows", "columns"]


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("n", [1, 120, 512, 32_000, 32_768, 49_152, 50_257, 128_256, 151_936])
def test_argmax_is_the_index_of_the_maximum(rows: int, n: int) -> None:
    logits = normal(rows, n, seed=n + rows)
    assert argmax(logits).tolist() == floats(logits).argmax(-1).tolist()


@pytest.mark.parametrize("place", [0, 1, 511, 512, 513, 40_000, 40_959])
@pytest.mark.parametrize("n", [40_960, 40_960 + 128])
def test_argmax_finds_a_maximum_anywhere(place: int, n: int) -> None:
    logits = mx.zeros((2, n))
    logits[1, place] = 1e-6
    logits[0, 17] = 1e-6
    assert argmax(logits).tolist() == [17, place]


def test_argmax_of_equals_is_one_of_them() -> None:
    logits = mx.full((1, 4 * LEAST_VOCABULARY), -1.0)
    equals = [700, 3 * MOST_COLUMNS + 5, 20_000]
    logits[:, mx.array(equals)] = 2.0
    assert argmax(logits).item() in equals


def test_argmax_of_infinities() -> None:
    logits = mx.full((3, 4 * LEAST_VOCABULARY), -mx.inf)
    logits[0, 600] = -1e30
    logits[1, 900] = mx.inf
    assert argmax(logits).tolist() == [600, NOT_FINITE, NOT_FINITE]


@quick
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 130),
    more=st.sampled_from([0, 1, 64, 256, 511]),
    seed=st.integers(0, 2**32 - 1),
)
def test_argmax_of_any_size(rows: int, groups: int, more: int, seed: int) -> None:
    logits = normal(rows, groups * MOST_COLUMNS + more, seed=seed)
    assert argmax(logits).tolist() == floats(logits).argmax(-1).tolist()


@pytest.mark.parametrize("place", [0, 700, -1])
@pytest.mark.parametrize("n", [120, LEAST_VOCABULARY])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_one_number_that_is_not_finite_marks_its_row(n: int, place: int, number: float) -> None:
    numbers = floats(normal(3, n)).copy()
    numbers[1, place % n] = number
    rows, columns = mx.array(numbers), mx.contiguous(mx.array(numbers).T).T
    found = [argmax(rows)]
    if n == LEAST_VOCABULARY:
        found += [argmax_by_rows(rows), argmax_by_columns(columns)]
    for indices in found:
        assert [index == NOT_FINITE for index in indices.tolist()] == [False, True, False]
