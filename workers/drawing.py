"""Drawing a token from each row's distribution, restricted to its most likely tokens.

No vocabulary is sorted. Weights are grouped by token id modulo COLUMNS: a group is drawn first, by
its weight, then a token in it, both by the Gumbel-max trick (Gumbel 1954). That is the same
distribution with a thousand random numbers a row instead of one for every token, and a rounding
difference in the logits changes the outcome only where two candidates are that close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxfleet.common.messages import Sampling
from mlxfleet.workers import cpu_math
from mlxfleet.workers.randomness import gumbel

COLUMNS = 512
# Weights below exp(-LEAST_LOG_WEIGHT) of the largest are not told apart by top-p.
LEAST_LOG_WEIGHT = 24.0
# They find where a nucleus ends to 2e-5 in a logit, about what logits are rounded by.
HALVINGS = 20
# Top-k up to this finds its candidates through column maxima.
MAX_COLUMN_K = 64

exp = cpu_math.exp if cpu_math.USED else mx.exp


def column(values: Sequence[float]) -> mx.array:
    """Values as a float32 array [n, 1]."""
    return mx.array(list(values), dtype=mx.float32)[:, None] if values else mx.zeros((0, 1))


@dataclass(frozen=True)
class Filters:
    """Restrictions of the drawn rows, each [n, 1] or None if no row has one."""

    top_k: mx.array | None
    greatest_k: int
    top_p: mx.array | None
    min_p: mx.array | None

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> Filters:
        """The filters of these rows."""
        ks = [s.top_k for s in samplings]
        ps = [s.top_p for s in samplings]
        least = [s.min_p for s in samplings]
        return cls(
            top_k=mx.array(ks, dtype=mx.int32)[:, None] if any(ks) else None,
            greatest_k=max(ks, default=0),
            top_p=column(ps) if any(p < 1 for p in ps) else None,
            min_p=column(least) if any(least) else None,
        )


def draw(logits: mx.array, highest: mx.array, filters: Filters, keys: mx.array) -> mx.array:
    """A token for each row: logits [rows, vocabulary] divided by the temperature, the highest of
    each row [rows, 1], and row keys [rows, 2] to token ids [rows]."""
    padding = -logits.shape[-1] % COLUMNS
    if padding:
        logits = mx.pad(logits, [(0, 0), (0, padding)], constant_values=-mx.inf)
    weights = exp(logits - highest)
    weights = restrict(weights, filters)
    grid = weights.reshape(weights.shape[0], -1, COLUMNS)
    groups = mx.log(mx.sum(grid, axis=1)) + gumbel(keys, mx.arange(COLUMNS))
    group = mx.argmax(groups, axis=-1)
    inside = mx.take_along_axis(grid, group[:, None, None], axis=2)[:, :, 0]
    # Other noise than the groups', which have the same numbers.
    ids = mx.arange(inside.shape[-1])[None] * COLUMNS + group[:, None] + COLUMNS
    return mx.argmax(mx.log(inside) + gumbel(keys, ids), axis=-1) * COLUMNS + group


def restrict(weights: mx.array, filters: Filters) -> mx.array:
    """Weights [rows, vocabulary], the largest of each row 1, with 0 for what may not be drawn:
    top-k, then the nucleus (Holtzman et al. 2020) of what it left, then min-p.

    What is as likely as the last token that may be drawn may be drawn as well, so that a choice
    never depends on an order among equals.
    """
    if filters.top_k is not None:
        weights = keep(weights, weights >= kth_largest(weights, filters))
    if filters.top_p is not None:
        weights = keep(weights, weights > below_nucleus(weights, filters.top_p))
    if filters.min_p is not None:
        weights = keep(weights, weights >= filters.min_p)
    return weights


def keep(weights: mx.array, kept: mx.array) -> mx.array:
    """0 for what is not kept; a product, which is faster than a choice on CPUs."""
    return weights * kept.astype(mx.float32)


def kth_largest(weights: mx.array, filters: Filters) -> mx.array:
    """The `top_k`-th largest weight of each row [rows, 1], 0 where top-k is off.

    The k largest are in the k columns with the largest maxima, so that few have to be sorted.
    """
    assert filters.top_k is not None
    k = filters.greatest_k
    candidates = weights
    if k <= MAX_COLUMN_K:
        grid = weights.reshape(weights.shape[0], -1, COLUMNS)
        columns = mx.argpartition(-mx.max(grid, axis=1), k - 1, axis=-1)[:, :k]
        candidates = mx.take_along_axis(grid, columns[:, None, :], axis=2)
        candidates = candidates.reshape(weights.shape[0], -1)
    descending = -mx.sort(-candidates, axis=-1)
    last = mx.clip(filters.top_k - 1, 0, descending.shape[-1] - 1)
    value = mx.take_along_axis(descending, last, axis=-1)
    return value * (filters.top_k > 0).astype(mx.float32)


def below_nucleus(weights: mx.array, top_p: mx.array) -> mx.array:
    """Weights [rows, 1] just below the least likely token of the nucleus: of the tokens that
    those which are more likely leave short of `top_p` [rows, 1] of all weight.

    The logarithm of the border is found by halving 0 to -LEAST_LOG_WEIGHT.
    """
    wanted = top_p * mx.sum(weights, axis=-1, keepdims=True)
    # Below exp(-low) the more likely tokens have enough weight, from exp(-high) on they do not.
    low, high = mx.full(wanted.shape, LEAST_LOG_WEIGHT), mx.zeros(wanted.shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = mass_above(weights, mx.exp(-middle)) >= wanted
        low, high = mx.where(enough, middle, low), mx.where(enough, high, middle)
    border = mx.where(low < LEAST_LOG_WEIGHT, mx.exp(-low), 0.0)
    return mx.where(top_p < 1, border, 0.0)


def mass_above(weights: mx.array, border: mx.array) -> mx.array:
    """Sum [rows, 1] of the weights [rows, a multiple of COLUMNS] above a border [rows, 1].

    Numbers that are not negative are in the order of their bits, so that the difference of these
    has the sign of the comparison; masking with it is faster than a product with a truth value.
    """
    bits, border_bits = mx.view(weights, mx.int32), mx.view(border, mx.int32)
    kept = mx.view(bits & ((border_bits - bits) >> 31), mx.float32)
    grid = kept.reshape(weights.shape[0], -1, COLUMNS)
    # Sums over columns vectorize.
    return mx.sum(mx.sum(grid, axis=1), axis=-1, keepdims=True)
