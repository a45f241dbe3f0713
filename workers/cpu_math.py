"""Faster arithmetic for machines without Metal, where MLX's CPU build computes exp one number at a
time (10 to 24 ns each on x86, a multiplication 0.2 ns), which is most of an activation or softmax.

Importing this module replaces `mx.fast.rope` and `swiglu` in `mlx_lm.models.activations` there.
Model files bind the latter when they are imported, so this has to happen before a model is loaded.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mlx.core as mx
import mlx_lm.models.activations

LOG2_E = 1.44269504088896341
# 2^f = 1 + c[0] f + c[1] f^2 + ... for 0 <= f <= 1, within 3e-9.
POWER_OF_2 = (
    6.931470423e-1,
    2.402293251e-1,
    5.548522016e-2,
    9.675532627e-3,
    1.246737638e-3,
    2.161380825e-4,
)
# Adding and subtracting it rounds to a whole number.
ROUNDER = 12582912.0
EXPONENT_BIAS, MANTISSA_BITS = 127, 23
# Arrays, because the compiler does not vectorize a loop that compares with what it knows.
LEAST_EXPONENT, GREATEST_EXPONENT = mx.array(-87.0), mx.array(88.0)
# With fewer numbers a compiled graph costs more than it saves.
LEAST_SWIGLU_SIZE = 2_048
LEAST_SOFTMAX_SIZE = 6_144
# With more numbers the broadcasts in a compiled graph cost more than it saves.
GREATEST_BROADCAST = 2_048
# Scores of attention that are computed together: a megabyte.
SCORES_AT_ONCE = 1 << 18


def exp(x: mx.array) -> mx.array:
    """e to the power of float32 `x`, within 2e-7 of its value and what changing `x` by its last
    bit would change; clamped to what float32 holds, so that no result is 0 or infinite.

    Compiled for a few sizes, to which others are padded: a graph is kept for each.
    """
    size = compiled_size(x.size)
    padded = mx.pad(x.reshape(-1), (0, size - x.size)) if size > x.size else x.reshape(-1)
    return compiled_exp(padded, LEAST_EXPONENT, GREATEST_EXPONENT)[: x.size].reshape(x.shape)


def compiled_size(size: int) -> int:
    """The next of eight sizes per power of two."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def exp_of(x: mx.array, least: mx.array, greatest: mx.array) -> mx.array:
    """`exp` as MLX's operations: one loop, which makes the bits of the result as an integer."""
    power = mx.minimum(greatest, mx.maximum(least, x)) * LOG2_E
    whole = (power - 0.5 + ROUNDER) - ROUNDER
    f = power - whole
    c = [coefficient * (1 << MANTISSA_BITS) for coefficient in POWER_OF_2]
    square = f * f
    # Not by Horner's rule: MLX cuts a chain of so many operations into two loops. 0.5 rounds.
    low = (f * c[0] + 0.5) + square * (f * c[2] + c[1])
    mantissa = low + square * square * ((f * c[4] + c[3]) + square * c[5])
    exponent = whole.astype(mx.int32) + EXPONENT_BIAS
    return mx.view(mantissa.astype(mx.int32) + (exponent << MANTISSA_BITS), mx.float32)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`."""
    # Gates of a pass [n, 1, dim] have few shapes.
    few_shapes = gate.ndim == 3 and gate.shape[1] == 1
    if gate.size < LEAST_SWIGLU_SIZE or gate.dtype != mx.float32 or not few_shapes:
        product: mx.array = swiglu_of_mlx_lm(gate, x)
        return product
    return compiled_swiglu(gate, x, LEAST_EXPONENT, GREATEST_EXPONENT)


def swiglu_of(gate: mx.array, x: mx.array, least: mx.array, greatest: mx.array) -> mx.array:
    """`swiglu` as MLX's operations."""
    silu: mx.array = gate / (exp_of(-gate, least, greatest) + 1.0)
    return silu * x


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **others: Any) -> mx.array:
    """`mx.fast.rms_norm`."""
    of_pass = x.ndim == 3 and x.shape[1] == 1
    if not of_pass or weight is None or x.dtype != mx.float32 or weight.dtype != mx.float32:
        return rms_norm_of_mlx(x, weight, eps, **others)
    total = mx.sum(x * x, axis=-1, keepdims=True)
    share, least = norm_numbers(x.shape[-1], eps)
    if x.size <= GREATEST_BROADCAST:
        return compiled_normal(x, total, weight, share, least)
    return x * compiled_factor(total, share, least) * weight


def normal_of(
    x: mx.array, total: mx.array, weight: mx.array, share: mx.array, least: mx.array
) -> mx.array:
    """`x` by its root mean square and a weight; `total` [..., 1] are the sums of its squares."""
    return x * factor_of(total, share, least) * weight


def factor_of(total: mx.array, share: mx.array, least: mx.array) -> mx.array:
    """One by the root mean square."""
    return mx.rsqrt(total * share + least)


@cache
def norm_numbers(width: int, eps: float) -> tuple[mx.array, mx.array]:
    """What the sum of squares is multiplied by, and what is added."""
    return mx.array(1.0 / width), mx.array(eps)


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


class Rope:
    """`mx.fast.rope`, for the positions in `shared` (an array [rows], set for every pass and not
    changed in place) computing the angles once for all layers, queries and keys.

    Rotating is `x * cos + (x @ turn) * sin`, where `turn` swaps the two numbers of a pair and
    negates one: exact, and two operations instead of 28. If there is much to rotate, cosines and
    sines are there for every head.
    """

    def __init__(self) -> None:
        self.shared: mx.array | None = None
        self._tables: dict[tuple[Any, ...], tuple[mx.array, mx.array]] = {}
        self._positions: mx.array | None = None
        self._turns: dict[tuple[int, int, bool], mx.array] = {}
        self._known_frequencies: dict[tuple[Any, ...], tuple[mx.array | None, mx.array]] = {}

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
        if self._positions is not offset:
            self._positions = offset
            self._tables.clear()
        way = (x.shape[-1], dims, traditional, base, scale, id(freqs))
        if way not in self._tables:
            of_dim = self._frequencies(x.shape[-1], dims, traditional, base, freqs)
            positions = offset.reshape(-1, 1, 1, 1)
            self._tables[way] = compiled_tables(positions, scale_array(scale), of_dim)
        tables = self._tables[way]
        if x.size > GREATEST_BROADCAST:
            if (way, x.shape) not in self._tables:
                cos, sin = (mx.contiguous(mx.broadcast_to(table, x.shape)) for table in tables)
                self._tables[way, x.shape] = (cos, sin)
            tables = self._tables[way, x.shape]
        turned = x @ self._turn(x.shape[-1], dims, traditional)
        rotated: mx.array = compiled_turn(x, turned, *tables)
        return rotated

    def _frequencies(
        self, dim: int, dims: int, traditional: bool, base: float | None, freqs: mx.array | None
    ) -> mx.array:
        """[dim]: how much an angle grows by with the position."""
        key = (dim, dims, traditional, base, id(freqs))
        if key not in self._known_frequencies:
            if freqs is None:
                assert base is not None
                half = dims // 2
                inverse = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(base) / half))
            else:
                inverse = 1.0 / freqs.astype(mx.float32)
            of_dim = mx.repeat(inverse, 2) if traditional else mx.concatenate([inverse, inverse])
            of_dim = mx.concatenate([of_dim, mx.zeros(dim - dims)])
            mx.eval(of_dim)
            # With what it was made of, whose id means nothing else as long as it is here.
            self._known_frequencies[key] = (freqs, of_dim)
        return self._known_frequencies[key][1]

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


def tables_of(positions: mx.array, scale: mx.array, of_dim: mx.array) -> tuple[mx.array, mx.array]:
    """Cosines and sines [rows, 1, 1, dim], of 0 for what is not rotated; `positions` [rows, 1, 1,
    1], `of_dim` [dim]: how much an angle grows by with the position."""
    angles = positions.astype(mx.float32) * scale * of_dim
    return mx.cos(angles), mx.sin(angles)


@cache
def scale_array(scale: float) -> mx.array:
    """`scale`, of which a compiled graph would otherwise be made anew."""
    return mx.array(scale)


def turn_of(x: mx.array, turned: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """`x` by the angle of `cos` and `sin`, towards `turned`."""
    return x * cos + turned * sin


compiled_exp = mx.compile(exp_of)
compiled_normal = mx.compile(normal_of)
compiled_factor = mx.compile(factor_of)
compiled_tables = mx.compile(tables_of)
compiled_turn = mx.compile(turn_of)
compiled_swiglu = mx.compile(swiglu_of)
swiglu_of_mlx_lm = mlx_lm.models.activations.swiglu
rope_of_mlx = mx.fast.rope
rms_norm_of_mlx = mx.fast.rms_norm
rope = Rope()

USED = not mx.metal.is_available()
if USED:
    mlx_lm.models.activations.swiglu = swiglu
    mx.fast.rope = rope  # type: ignore[assignment]
    mx.fast.rms_norm = rms_norm
