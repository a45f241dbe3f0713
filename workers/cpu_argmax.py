"""The largest logit of each row, and its index; fast also where there is no Metal."""

from __future__ import annotations

import mlx.core as mx

from mlxfleet.workers import cpu_math
from mlxfleet.workers.cpu_linear import LEAST_VOCABULARY, head

# Divides the sizes of most vocabularies.
ARGMAX_COLUMNS = 512


def argmax(logits: mx.array) -> mx.array:
    """Index of the largest number in each row [rows, n]."""
    return largest(logits)[0]


def largest(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Index and value, each [rows], of the largest number in each row [rows, n]. The value is NaN
    where a row has a NaN, and the index then means nothing but is in range.

    In two steps: the maximum over strided columns vectorizes, along a row it does not.
    """
    n = logits.shape[1]
    narrow = n % ARGMAX_COLUMNS or n < LEAST_VOCABULARY
    if not cpu_math.USED or narrow or logits.dtype != mx.float32:
        return mx.argmax(logits, axis=-1), mx.max(logits, axis=-1)
    by_columns = head.by_columns(logits.shape[0])
    return largest_by_columns(logits) if by_columns else largest_by_rows(logits)


def largest_by_rows(logits: mx.array) -> tuple[mx.array, mx.array]:
    """For logits of which a row lies side by side."""
    grid = logits.reshape(logits.shape[0], -1, ARGMAX_COLUMNS)
    maxima = mx.max(grid, axis=1, keepdims=True)
    column = mx.argmax(maxima, axis=2, keepdims=True)
    row = mx.argmax(mx.take_along_axis(grid, column, axis=2), axis=1, keepdims=True)
    return compiled_index(row, column).reshape(-1), mx.max(maxima, axis=2).reshape(-1)


def largest_by_columns(logits: mx.array) -> tuple[mx.array, mx.array]:
    """For logits of which a column lies side by side."""
    grid = logits.T.reshape(-1, ARGMAX_COLUMNS, logits.shape[0])
    maxima = mx.max(grid, axis=0, keepdims=True)
    column = mx.argmax(maxima, axis=1, keepdims=True)
    row = mx.argmax(mx.take_along_axis(grid, column, axis=1), axis=0, keepdims=True)
    return compiled_index(row, column).reshape(-1), mx.max(maxima, axis=1).reshape(-1)


def index_of(row: mx.array, column: mx.array) -> mx.array:
    """Where in the logits a place of the grid is."""
    return row * ARGMAX_COLUMNS + column


compiled_index = mx.compile(index_of)
