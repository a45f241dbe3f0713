"""The output head and the choice of its largest logit where there is no Metal and matrix products
run on OpenBLAS.

For `x @ weight.T` OpenBLAS rearranges the whole weight first. If the model is narrow that takes
longer than the product, and with `weight @ x.T` it takes half as long; the logits then lie by
columns, a token's numbers for all rows side by side.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear

from mlxfleet.workers import cpu_math

# With 256 numbers a token the two are even, with more the usual way is faster. Fixed and not
# measured at start: every worker has to round in the same way.
GREATEST_WIDTH = 128
LEAST_VOCABULARY = 8_192
# Divides the sizes of most vocabularies.
ARGMAX_COLUMNS = 512


class NarrowEmbedding(Embedding):
    """An embedding that is also the head."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits of `x` [rows, 1, width]."""
        return by_columns(self.weight, x)


class NarrowLinear(Linear):
    """A head of its own, without bias."""

    def __call__(self, x: mx.array) -> mx.array:
        """Logits of `x` [rows, 1, width]."""
        return by_columns(self["weight"], x)


def by_columns(weight: mx.array, x: mx.array) -> mx.array:
    """`x @ weight.T`; by columns if `x` is [rows, 1, width]."""
    if x.ndim != 3 or x.shape[1] != 1:
        return x @ weight.T
    return (weight @ x[:, 0].T).T[:, None]


class Head:
    """Whether the loaded model's logits lie by columns; for `argmax`, which a wrong answer would
    slow down, not mislead."""

    def __init__(self) -> None:
        self.by_columns = False

    def adapt(self, model: Any) -> None:
        """Let a narrow model's head compute by columns."""
        self.by_columns = False
        if not cpu_math.USED:
            return
        for module in model.modules():
            if type(module) is Embedding and is_narrow_head(module):
                module.__class__ = NarrowEmbedding
            elif type(module) is Linear and is_narrow_head(module) and "bias" not in module:
                module.__class__ = NarrowLinear
            else:
                continue
            self.by_columns = True


def is_narrow_head(module: Any) -> bool:
    """Whether a layer is as tall as a vocabulary, narrow and in full precision."""
    weight: mx.array = module.weight
    vocabulary, width = weight.shape
    shaped = vocabulary >= LEAST_VOCABULARY and width <= GREATEST_WIDTH
    return shaped and weight.dtype == mx.float32


head = Head()


def argmax(logits: mx.array) -> mx.array:
    """Index of the largest number in each row [rows, n], in two steps: the maximum over strided
    columns vectorizes, along a row it does not."""
    n = logits.shape[1]
    narrow = n % ARGMAX_COLUMNS or n < LEAST_VOCABULARY
    if not cpu_math.USED or narrow or logits.dtype != mx.float32:
        return mx.argmax(logits, axis=-1)
    return argmax_by_columns(logits) if head.by_columns else argmax_by_rows(logits)


def argmax_by_rows(logits: mx.array) -> mx.array:
    """For logits of which a row lies side by side."""
    grid = logits.reshape(logits.shape[0], -1, ARGMAX_COLUMNS)
    column = mx.argmax(mx.max(grid, axis=1), axis=-1)
    candidates = mx.take_along_axis(grid, column[:, None, None], axis=2)[:, :, 0]
    return mx.argmax(candidates, axis=-1) * ARGMAX_COLUMNS + column


def argmax_by_columns(logits: mx.array) -> mx.array:
    """For logits of which a column lies side by side."""
    grid = logits.T.reshape(-1, ARGMAX_COLUMNS, logits.shape[0])
    column = mx.argmax(mx.max(grid, axis=0), axis=0)
    candidates = mx.take_along_axis(grid, column[None, None], axis=1)[:, 0]
    return mx.argmax(candidates, axis=0) * ARGMAX_COLUMNS + column
