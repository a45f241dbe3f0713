"""Faster arithmetic for machines without Metal, where MLX's CPU build computes exp one number at a
time (10 to 24 ns each on x86, a multiplication 0.2 ns), which is most of an activation or softmax.

Importing this module replaces `mx.fast.rope` and `swiglu` in `mlx_lm.models.activations` there.
Model files bind the latter when they are imported, so this has to happen before a model is loaded.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx_lm.models.activations

LOG2_E = 1.44269504088896341
# ln 2 in two parts, so that multiples of the first are exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2; Cephes library, expf (Moshier, public domain).
EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LEAST_EXPONENT, GREATEST_EXPONENT = -87.0, 88.0
# Adding and subtracting it rounds to a whole number.
ROUNDER = 12582912.0
EXPONENT_BIAS, MANTISSA_BITS = 127, 23
# With fewer numbers the many operations cost more than they save.
LEAST_SWIGLU_SIZE = 8_192
LEAST_SOFTMAX_SIZE = 24_576
LEAST_ARGMAX_WIDTH = 8_192
# Scores of attention that are computed together: a megabyte.
SCORES_AT_ONCE = 1 << 18
# Divides the sizes of most vocabularies.
ARGMAX_COLUMNS = 512


def exp(x: mx.array) -> mx.array:
    """e to the power of float32 `x`, within 1e-7 of its value; clamped to what float32 holds, so
    that no result is 0 or infinite."""
    x = mx.clip(x, LEAST_EXPONENT, GREATEST_EXPONENT)
    shifted = x * LOG2_E + ROUNDER
    whole = shifted - ROUNDER
    rest = x - whole * LN2_HIGH - whole * LN2_LOW
    value = rest * EXP_POLYNOMIAL[0]
    for coefficient in EXP_POLYNOMIAL[1:-1]:
        value = (value + coefficient) * rest
    value = (value + EXP_POLYNOMIAL[-1]) * (rest * rest) + rest + 1.0
    bits = (mx.view(shifted, mx.int32) + EXPONENT_BIAS) << MANTISSA_BITS
    return value * mx.view(bits, mx.float32)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`."""
    if gate.size < LEAST_SWIGLU_SIZE or gate.dtype != mx.float32:
        product: mx.array = swiglu_of_mlx_lm(gate, x)
        return product
    silu: mx.array = gate / (exp(-gate) + 1.0)
    return silu * x


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """Scaled dot-product attention: queries [rows, heads, n, dim], keys and values
    [rows, KV heads, length, dim], an additive mask that broadcasts to [rows, 1, n, length]. With
    a mask and n > 1 the queries are the last n tokens, and the mask is causal.

    One matrix product per KV head, not per head; as many queries at once as fit the processor's
    cache, against the keys that they may see; no mask where there is none.
    """
    rows, heads, n = queries.shape[:3]
    length = keys.shape[2]
    at_once = max(1, SCORES_AT_ONCE // (rows * heads * length))
    if at_once >= n:
        return attend_at_once(queries, keys, values, scale, mask)
    outputs = []
    for first in range(0, n, at_once):
        last = min(first + at_once, n)
        seen = length if mask is None else length - n + last
        part = None if mask is None else mask[..., first:last, :seen]
        some = queries[:, :, first:last]
        outputs.append(attend_at_once(some, keys[:, :, :seen], values[:, :, :seen], scale, part))
    return mx.concatenate(outputs, axis=2)


def attend_at_once(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """`attention` in one piece."""
    rows, heads, n, dim = queries.shape
    kv_heads, length = keys.shape[1:3]
    shape = (rows, kv_heads, heads // kv_heads * n, length)
    scores = (queries * scale).reshape(*shape[:3], dim) @ keys.swapaxes(-1, -2)
    if mask is not None:
        by_head = scores.reshape(rows, kv_heads, -1, n, length)
        scores = (by_head + mask[..., None, :, :]).reshape(shape)
    if scores.size < LEAST_SOFTMAX_SIZE or scores.dtype != mx.float32:
        output = mx.softmax(scores, axis=-1, precise=True) @ values
    else:
        weights = exp(scores - mx.max(scores, axis=-1, keepdims=True))
        output = (weights @ values) / mx.sum(weights, axis=-1, keepdims=True)
    return output.reshape(rows, heads, n, -1)


def argmax(logits: mx.array) -> mx.array:
    """Index of the largest number in each row [rows, n], in two steps: the maximum over strided
    columns vectorizes, along a row it does not."""
    rows, n = logits.shape
    narrow = n % ARGMAX_COLUMNS or n < LEAST_ARGMAX_WIDTH
    if not USED or narrow or logits.dtype != mx.float32:
        return mx.argmax(logits, axis=-1)
    grid = logits.reshape(rows, -1, ARGMAX_COLUMNS)
    column = mx.argmax(mx.max(grid, axis=1), axis=-1)
    candidates = mx.take_along_axis(grid, column[:, None, None], axis=2)[:, :, 0]
    return mx.argmax(candidates, axis=-1) * ARGMAX_COLUMNS + column


class Rope:
    """`mx.fast.rope`, for the positions in `shared` (an array [rows], set for every pass and not
    changed in place) computing the angles once for all layers, queries and keys.

    Rotating is `x * cos + (x @ turn) * sin`, where `turn` swaps the two numbers of a pair and
    negates one: exact, and four operations instead of 28.
    """

    def __init__(self) -> None:
        self.shared: mx.array | None = None
        self._tables: tuple[Any, ...] | None = None
        self._turns: dict[tuple[int, int, bool], mx.array] = {}

    def __call__(
        self,
        x: mx.array,
        dims: int,
        *,
        traditional: bool,
        base: float | None,
        scale: float,
        offset: int | mx.array,
        freqs: mx.array | None = None,
        **others: Any,
    ) -> mx.array:
        """Rotate `x` [rows, heads, n, dim]."""
        if offset is not self.shared or x.shape[2] != 1 or x.dtype != mx.float32:
            return rope_of_mlx(
                x,
                dims,
                traditional=traditional,
                base=base,
                scale=scale,
                offset=offset,
                freqs=freqs,
                **others,
            )
        key = (x.shape[-1], dims, traditional, base, scale)
        known = self._tables
        if known is None or known[0] is not offset or known[1] is not freqs or known[2] != key:
            angles = self._angles(x.shape[-1], dims, traditional, base, scale, offset, freqs)
            known = self._tables = (offset, freqs, key, mx.cos(angles), mx.sin(angles))
        cos, sin = known[3:]
        rotated: mx.array = x * cos + (x @ self._turn(x.shape[-1], dims, traditional)) * sin
        return rotated

    def _angles(
        self,
        dim: int,
        dims: int,
        traditional: bool,
        base: float | None,
        scale: float,
        positions: Any,
        freqs: mx.array | None,
    ) -> mx.array:
        """Angles [rows, 1, 1, dim], 0 for what is not rotated."""
        half = dims // 2
        if freqs is None:
            assert base is not None
            inverse = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(base) / half))
        else:
            inverse = 1.0 / freqs.astype(mx.float32)
        of_dim = mx.repeat(inverse, 2) if traditional else mx.concatenate([inverse, inverse])
        of_dim = mx.concatenate([of_dim, mx.zeros(dim - dims)])
        angles: mx.array = (positions.astype(mx.float32) * scale)[:, None] * of_dim
        return angles[:, None, None, :]

    def _turn(self, dim: int, dims: int, traditional: bool) -> mx.array:
        """[dim, dim]: what the second of a pair is to the first, and the reverse."""
        key = (dim, dims, traditional)
        if key not in self._turns:
            rows = [[0.0] * dim for _ in range(dim)]
            for pair in range(dims // 2):
                first = 2 * pair if traditional else pair
                second = first + 1 if traditional else pair + dims // 2
                rows[second][first], rows[first][second] = -1.0, 1.0
            self._turns[key] = mx.array(rows)
        return self._turns[key]


swiglu_of_mlx_lm = mlx_lm.models.activations.swiglu
rope_of_mlx = mx.fast.rope
rope = Rope()

USED = not mx.metal.is_available()
if USED:
    mlx_lm.models.activations.swiglu = swiglu
    mx.fast.rope = rope  # type: ignore[assignment]
