"""The index of the largest logit of each row; fast also where there is no Metal."""

from __future__ import annotations

import math

import mlx.core as mx

from mlxfleet.workers import cpu_math
from mlxfleet.workers.cpu_linear import LEAST_VOCABULARY, head

# A vocabulary is split into as many columns as divide its size: 512 of 49,152 tokens, 256 of
# Llama 3's 128,256, 128 of Qwen's 151,936. With fewer than 32 that is no faster.
MOST_COLUMNS = 512
FEWEST_COLUMNS = 32
# In the place of an index where a row has a number that is not finite.
NOT_FINITE = -1


def argmax(logits: mx.array) -> mx.array:
    """Index [rows], int32, of the largest number in each row [rows, n], or NOT_FINITE where that is
    infinite or a row has a NaN.

    In two steps: the maximum over strided columns vectorizes, along a row it does not.
    """
    n = logits.shape[1]
    narrow = columns_of(n) < FEWEST_COLUMNS or n < LEAST_VOCABULARY
    if not cpu_math.USED or narrow or logits.dtype != mx.float32:
        return marked(mx.argmax(logits, axis=-1), mx.max(logits, axis=-1))
    by_columns = head.by_columns(logits.shape[0])
    return argmax_by_columns(logits) if by_columns else argmax_by_rows(logits)


def columns_of(n: int) -> int:
    """Columns of a grid of `n` logits."""
    return math.gcd(n, MOST_COLUMNS)


def argmax_by_rows(logits: mx.array) -> mx.array:
    """For logits of which a row lies side by side."""
    columns = columns_of(logits.shape[1])
    grid = logits.reshape(logits.shape[0], -1, columns)
    maxima = mx.max(grid, axis=1, keepdims=True)
    column = mx.argmax(maxima, axis=2, keepdims=True)
    row = mx.argmax(mx.take_along_axis(grid, column, axis=2), axis=1, keepdims=True)
    return index_of(row, column, columns, mx.max(maxima, axis=2, keepdims=True)).reshape(-1)


def argmax_by_columns(logits: mx.array) -> mx.array:
    """For logits of which a column lies side by side."""
    columns = columns_of(logits.shape[1])
    grid = logits.T.reshape(-1, columns, logits.shape[0])
    maxima = mx.max(grid, axis=0, keepdims=True)
    column = mx.argmax(maxima, axis=1, keepdims=True)
    row = mx.argmax(mx.take_along_axis(grid, column, axis=1), axis=0, keepdims=True)
    return index_of(row, column, columns, mx.max(maxima, axis=1, keepdims=True)).reshape(-1)


# Signed, because the mark is the input of the next pass before anybody has seen it: as an index it
# is that of the last.
@mx.compile
def marked(index: mx.array, peak: mx.array) -> mx.array:
    """An index, or the mark where the number there is not finite."""
    return mx.where(mx.isfinite(peak), index.astype(mx.int32), NOT_FINITE)


@mx.compile
def index_of(row: mx.array, column: mx.array, columns: int, peak: mx.array) -> mx.array:
    """Where in the logits a place of the grid is, with the mark."""
    index = (row * columns + column).astype(mx.int32)
    return mx.where(mx.isfinite(peak), index, NOT_FINITE)
