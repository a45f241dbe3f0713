"""Drawing without sorting a vocabulary draws from what sorting it would leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.messages import Sampling
from mlxfleet.workers.drawing import (
    COLUMNS,
    LEAST_LOG_WEIGHT,
    MAX_COLUMN_K,
    Filters,
    below_nucleus,
    draw,
    kth_largest,
    mass_above,
    restrict,
)
from mlxfleet.workers.randomness import row_key

SPREADS = [0.0, 0.01, 1.0, 3.0, 10.0, 40.0]
# How far apart in a logit two tokens are that a nucleus tells apart, and what float32 adds.
BORDER = 1e-4
ROUNDING = 1e-5


def filters_of(rows: int = 1, **parameters: Any) -> Filters:
    return Filters.of([Sampling(seed=0, max_tokens=1, **parameters)] * rows)


def weights_of(rows: int, vocab: int, spread: float, seed: int = 0) -> np.ndarray:
    """Weights [rows, vocabulary], the largest of each row 1, float32 in a multiple of COLUMNS."""
    logits = np.random.default_rng(seed).normal(0, spread, (rows, vocab)).astype(np.float32)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.pad(weights, [(0, 0), (0, -vocab % COLUMNS)])


def keys_of(count: int) -> mx.array:
    return mx.array([row_key(seed, 0) for seed in range(count)], dtype=mx.uint32)


# --- top-k --------------------------------------------------------------------------------------


def sorted_kth(weights: np.ndarray, k: int) -> np.ndarray:
    return np.sort(weights, axis=-1)[:, -min(k, weights.shape[-1])]


@pytest.mark.parametrize("k", [*range(1, MAX_COLUMN_K + 1), 65, 100, 511, 512, 1000, 1536, 9999])
def test_the_kth_largest_is_that_of_a_sort(k: int) -> None:
    weights = weights_of(4, 1500, 3.0, seed=k)
    found = kth_largest(mx.array(weights), filters_of(4, top_k=k))
    assert np.array(found)[:, 0].tolist() == sorted_kth(weights, k).tolist()


@pytest.mark.parametrize("ks", [[1, 64, 0, 7], [1, 200, 0, 64], [5, 5, 5, 5]])
def test_every_row_has_its_own_k(ks: list[int]) -> None:
    weights = weights_of(4, 2000, 3.0)
    filters = Filters.of([Sampling(seed=0, max_tokens=1, top_k=k) for k in ks])
    found = np.array(kth_largest(mx.array(weights), filters))[:, 0].tolist()
    expected = [float(sorted_kth(weights, k)[row]) if k else 0.0 for row, k in enumerate(ks)]
    assert found == expected


def test_the_largest_may_share_a_column() -> None:
    weights = weights_of(1, 40 * COLUMNS, 0.1) * 0.01
    places = [3 + COLUMNS * row for row in range(40)]
    weights[0, places] = np.linspace(0.5, 1, 40)
    for k in (1, 5, 39, 40, 41):
        found = kth_largest(mx.array(weights), filters_of(top_k=k))
        assert found.item() == sorted_kth(weights, k)[0]


def test_equals_of_the_kth_largest_are_kept() -> None:
    weights = np.zeros((1, COLUMNS), dtype=np.float32)
    weights[0, [4, 9, 30, 31]] = [1, 0.5, 0.5, 0.25]
    for k, kept in [(1, [4]), (2, [4, 9, 30]), (3, [4, 9, 30]), (4, [4, 9, 30, 31])]:
        assert kept_by(mx.array(weights), top_k=k) == [kept]


def kept_by(weights: mx.array, **parameters: Any) -> list[list[int]]:
    restricted = np.array(restrict(weights, filters_of(weights.shape[0], **parameters)))
    return [np.flatnonzero(row).tolist() for row in restricted]


# --- the nucleus --------------------------------------------------------------------------------


def assert_nucleus(weights: np.ndarray, kept: np.ndarray, top_p: float) -> None:
    """What is kept is the nucleus of a sort, but for tokens at its border that differ from the
    last of it by no more than is told apart."""
    exact = weights.astype(np.float64)
    order = np.argsort(-exact)
    cumulative = np.cumsum(exact[order])
    total = cumulative[-1]
    before = cumulative - exact[order]
    surely = order[before < (top_p - ROUNDING) * total]
    perhaps = order[before < (top_p + ROUNDING) * total]
    least = exact[perhaps[-1]] if len(perhaps) else exact.max()
    possible = exact >= least * (1 - BORDER)
    assert kept[surely[exact[surely] > math.exp(-LEAST_LOG_WEIGHT)]].all()
    assert kept[exact.argmax()]
    assert not kept[~possible].any()


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_nucleus_is_that_of_a_sort(spread: float, top_p: float) -> None:
    weights = weights_of(8, 5000, spread)
    restricted = np.array(restrict(mx.array(weights), filters_of(8, top_p=top_p)))
    for before, after in zip(weights, restricted, strict=True):
        assert_nucleus(before, after > 0, top_p)
        assert ((after == before) | (after == 0)).all()


@settings(derandomize=True, deadline=None, database=None, max_examples=40)
@given(
    vocab=st.integers(1, 3000),
    spread=st.floats(0, 30),
    top_p=st.floats(0, 0.9999),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_nucleus_of_any_distribution(vocab: int, spread: float, top_p: float, seed: int) -> None:
    weights = weights_of(2, vocab, spread, seed)
    restricted = np.array(restrict(mx.array(weights), filters_of(2, top_p=top_p)))
    for before, after in zip(weights, restricted, strict=True):
        assert_nucleus(before, after > 0, top_p)


def test_a_nucleus_of_everything_keeps_everything() -> None:
    weights = mx.array(weights_of(2, 600, 10.0))
    top_p = mx.array([[1.0], [0.5]])
    border = below_nucleus(weights, top_p)
    assert border[0].item() == 0
    assert border[1].item() > 0


def test_equals_of_the_last_in_the_nucleus_are_kept() -> None:
    weights = np.zeros((1, COLUMNS), dtype=np.float32)
    weights[0, [4, 9, 30, 31]] = [1, 0.5, 0.5, 0.25]
    assert kept_by(mx.array(weights), top_p=0.6) == [[4, 9, 30]]


def test_mass_above_a_border() -> None:
    weights = weights_of(3, 2 * COLUMNS, 2.0)
    border = np.array([[0.0], [0.01], [0.5]], dtype=np.float32)
    expected = np.where(weights > border, weights, 0).sum(-1)
    found = np.array(mass_above(mx.array(weights), mx.array(border)))[:, 0]
    assert found == pytest.approx(expected, rel=1e-5)


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("min_p", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("spread", SPREADS)
def test_min_p_keeps_what_is_not_much_less_likely_than_the_best(
    min_p: float, spread: float
) -> None:
    weights = weights_of(4, 700, spread)
    expected = [np.flatnonzero(row >= np.float32(min_p)).tolist() for row in weights]
    assert kept_by(mx.array(weights), min_p=min_p) == expected


def test_without_filters_nothing_changes() -> None:
    weights = mx.array(weights_of(2, 700, 3.0))
    filters = filters_of(2)
    assert (filters.top_k, filters.top_p, filters.min_p) == (None, None, None)
    assert mx.array_equal(restrict(weights, filters), weights)


def test_the_nucleus_is_of_what_top_k_left() -> None:
    weights = np.zeros((1, COLUMNS), dtype=np.float32)
    weights[0, :5] = [1, 0.9, 0.8, 0.7, 0.6]
    assert kept_by(mx.array(weights), top_p=0.5) == [[0, 1, 2]]
    assert kept_by(mx.array(weights), top_p=0.5, top_k=2) == [[0]]
    assert kept_by(mx.array(weights), top_p=0.7, top_k=3) == [[0, 1]]
    assert kept_by(mx.array(weights), top_p=0.7, top_k=3, min_p=0.95) == [[0]]


def test_rows_with_other_filters_do_not_meet() -> None:
    each: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_k": 90}]
    weights = mx.array(weights_of(len(each), 900, 2.0))
    filters = Filters.of([Sampling(seed=0, max_tokens=1, **parameters) for parameters in each])
    together = np.array(restrict(weights, filters))
    for row, parameters in enumerate(each):
        only = np.array(restrict(weights[row : row + 1], filters_of(**parameters)))
        assert np.array_equal(together[row] > 0, only[0] > 0)


# --- draws --------------------------------------------------------------------------------------

DRAWS = 4000


def drawn(logits: np.ndarray, rows: int = DRAWS, **parameters: Any) -> list[int]:
    """Tokens of many seeds for logits [vocabulary]."""
    tiled = mx.broadcast_to(mx.array(logits), (rows, len(logits)))
    highest = mx.max(tiled, axis=-1, keepdims=True)
    tokens: Any = draw(tiled, highest, filters_of(rows, **parameters), keys_of(rows)).tolist()
    return list(tokens)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def assert_distributed(places: Sequence[int], expected: np.ndarray) -> None:
    """Pearson's chi-square at the 99.9th percentile (Wilson and Hilferty's approximation)."""
    possible = expected > 0
    counts = np.bincount(places, minlength=len(expected))
    assert counts[~possible].sum() == 0, "a token that was ruled out"
    wanted = expected[possible] * len(places)
    statistic = ((counts[possible] - wanted) ** 2 / wanted).sum()
    freedom = possible.sum() - 1
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("vocab", [2, 10, COLUMNS - 1, COLUMNS, COLUMNS + 1, 1300])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_draws_follow_the_distribution(vocab: int, spread: float) -> None:
    logits = np.random.default_rng(vocab).normal(0, spread, vocab).astype(np.float32)
    # Bins of tokens, so that each is drawn often enough to count.
    bins = np.random.default_rng(1).integers(0, 8, vocab)
    bins[:2] = [0, 1]
    expected = np.bincount(bins, weights=softmax(logits), minlength=8)
    assert_distributed(bins[drawn(logits)].tolist(), expected)


def test_tokens_of_one_group_are_told_apart() -> None:
    logits = np.full(4 * COLUMNS + 3, -50, dtype=np.float32)
    places = [1 + row * COLUMNS for row in range(5)]
    logits[places] = [0, -0.5, -1, -1.5, 0.3]
    tokens = [places.index(token) for token in drawn(logits)]
    assert_distributed(tokens, softmax(logits[places]))


def test_tokens_of_all_groups_are_told_apart() -> None:
    logits = np.full(3 * COLUMNS, -50, dtype=np.float32)
    places = [0, 5, COLUMNS + 5, 2 * COLUMNS, 2 * COLUMNS + 7, 3 * COLUMNS - 1]
    logits[places] = [0, -0.5, 0.2, -1, -1.5, 0.3]
    tokens = [places.index(token) for token in drawn(logits)]
    assert_distributed(tokens, softmax(logits[places]))


@pytest.mark.parametrize(
    "parameters",
    [{"top_k": 20}, {"top_k": 100}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 30, "top_p": 0.9}],
    ids=str,
)
def test_draws_follow_what_the_filters_leave(parameters: dict[str, Any]) -> None:
    vocab = 1000
    logits = np.random.default_rng(3).normal(0, 3, vocab).astype(np.float32)
    weights = np.exp(logits - logits.max())
    padded = mx.array(np.pad(weights, (0, -vocab % COLUMNS))[None])
    left = np.array(restrict(padded, filters_of(**parameters)))[0, :vocab].astype(np.float64)
    tokens = drawn(logits, **parameters)
    assert not any(left[token] == 0 for token in tokens)
    bins = np.random.default_rng(1).integers(0, 6, vocab)
    expected = np.bincount(bins, weights=left / left.sum(), minlength=6)
    assert_distributed(bins[tokens].tolist(), expected)


@pytest.mark.parametrize("vocab", [1, 511, 513, 50_257])
def test_what_fills_the_last_group_up_is_never_drawn(vocab: int) -> None:
    tokens = drawn(np.zeros(vocab, dtype=np.float32), rows=50)
    assert all(0 <= token < vocab for token in tokens)


@pytest.mark.parametrize("vocab", [700, 1024])
def test_what_is_ruled_out_is_never_drawn(vocab: int) -> None:
    logits = np.full(vocab, -np.inf, dtype=np.float32)
    logits[[600, 13]] = [1.0, 1.0]
    assert set(drawn(logits)) == {13, 600}


def test_a_draw_depends_on_the_key_and_not_on_the_row() -> None:
    logits = np.random.default_rng(5).normal(0, 2, 1100).astype(np.float32)
    tokens = drawn(logits, rows=40)
    backwards = mx.broadcast_to(mx.array(logits), (40, 1100))
    highest = mx.max(backwards, axis=-1, keepdims=True)
    again = draw(backwards, highest, filters_of(40), keys_of(40)[::-1])
    assert again.tolist() == tokens[::-1]


@pytest.mark.parametrize("border", [0.0, 1e-38, 1e-10, 0.25, 0.5, 1.0])
def test_the_mass_above_a_border_is_that_of_the_larger_weights(border: float) -> None:
    numbers = np.concatenate([np.geomspace(1e-38, 1, 1020), [0.0, 0.25, 0.5, 1.0]])
    weights = np.random.default_rng(0).permutation(numbers).astype(np.float32)[None]
    expected = weights[weights > np.float32(border)].sum(dtype=np.float64)
    found = mass_above(mx.array(weights), mx.array([[border]], dtype=mx.float32))
    assert found.item() == pytest.approx(expected, rel=1e-6)
