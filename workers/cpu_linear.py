"""Linear layers and output heads where there is no Metal and matrix products run on OpenBLAS.

OpenBLAS rearranges the whole weight before it multiplies, which for a few rows takes longer than
the product. It does that faster if the numbers that belong to one input lie side by side, so
weights are laid out by inputs.

For processors with AVX-512 it also has kernels that rearrange nothing, and takes them for small
products only. There weights stay as they are, for few rows a weight is cut into parts that are
small enough, and all parts are one batched product.

The head of a narrow model stays as it is everywhere, because it is faster as `weight @ x.T`, where
it is not in parts: the logits then lie by columns, a token's numbers for all rows side by side.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear

from mlxfleet.workers import cpu_math, openblas

# The cores, in OpenBLAS' words, for which it has kernels for small products, and what it takes for
# one: rows x outputs, and that x inputs (its sgemm_small_kernel_permit_skylakex.c).
CORES_WITH_SMALL_KERNELS = (b"SkylakeX", b"Cooperlake", b"SapphireRapids")
MOST_RESULTS, MOST_PRODUCTS = 1_200, 1_000_000
# With 16 rows the usual kernels are even on one core, and faster on two.
FEW_ROWS = 8
# Smaller parts are no faster than the whole.
LEAST_PART = 8
# What begins with an underscore in a module of MLX is no parameter.
PARTS = "_parts_by_rows"
BY_INPUTS = "_weight_by_inputs"
# With twice as many inputs logits by columns take as long as by rows or longer, with kernels for
# small products and without. Fixed and not measured at start, so that workers on equal machines
# round in the same way.
GREATEST_WIDTH = 128
GREATEST_WIDTH_WITHOUT = 64
LEAST_VOCABULARY = 8_192


class CpuLinear(Linear):
    """A linear layer."""

    def __call__(self, x: mx.array) -> mx.array:
        """`x @ weight.T + bias`."""
        y = product(self, x)
        return y + self["bias"] if "bias" in self else y


class CpuEmbedding(Embedding):
    """An embedding that is also the head."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits of `x`."""
        return product(self, x)


def product(layer: Any, x: mx.array) -> mx.array:
    """`x @ layer.weight.T`; by columns if the layer is a narrow head, `x` is [rows, 1, inputs] and
    that is faster."""
    if BY_INPUTS in layer:
        matrix, batch = layer[BY_INPUTS]
        # With as many dimensions on both sides one operation, otherwise three.
        y: mx.array = x @ (batch if x.ndim == 3 and x.shape[0] == 1 else matrix)
        return y
    weight: mx.array = layer.weight
    if x.ndim != 3 or x.shape[1] != 1:
        return x @ weight.T
    rows = x.shape[0]
    if by_columns(rows) and is_narrow_head(layer):
        if rows == 1:
            return (weight @ x.reshape(-1, 1)).reshape(1, 1, -1)
        return (weight @ x[:, 0].T).T[:, None]
    parts = parts_of(layer, rows) if rows <= few_rows() else None
    if parts is None:
        return x @ weight.T
    by_part = x.swapaxes(0, 1) @ parts
    return (by_part if rows == 1 else by_part.swapaxes(0, 1)).reshape(rows, 1, -1)


def lay_out_by_inputs(layer: Any) -> None:
    """Let the numbers of one input lie side by side; the weight's shape stays."""
    matrix = mx.contiguous(layer.weight.T)
    layer.weight = matrix.T
    layer[BY_INPUTS] = (matrix, matrix[None])
    # The old weight goes before the next one is laid out.
    mx.eval(layer.weight, layer[BY_INPUTS])


def parts_of(layer: Any, rows: int) -> mx.array | None:
    """The layer's weight [parts, inputs, outputs of a part], a view of it, for a product with so
    many rows; None if that is better done at once."""
    known: dict[int, mx.array | None] = layer[PARTS]
    if rows not in known:
        outputs, inputs = layer.weight.shape
        size = part_size(rows, outputs, inputs)
        known[rows] = None
        if LEAST_PART <= size < outputs:
            parts = layer.weight.reshape(-1, size, inputs).swapaxes(1, 2)
            mx.eval(parts)
            known[rows] = parts
    return known[rows]


def needs_parts(layer: Any) -> bool:
    """Whether a product with few rows may be too large to be done at once."""
    outputs, inputs = layer.weight.shape
    return bool(part_size(FEW_ROWS, outputs, inputs) < outputs)


def part_size(rows: int, outputs: int, inputs: int) -> int:
    """The most outputs of a part that OpenBLAS takes for small, of those that divide all; 0 if
    there is none."""
    most = min(MOST_RESULTS // rows, MOST_PRODUCTS // (rows * inputs), outputs)
    return next((size for size in range(most, 0, -1) if outputs % size == 0), 0)


class Head:
    """How the loaded model's logits lie; for `argmax`, which a wrong answer would slow down, not
    mislead."""

    def __init__(self) -> None:
        self.narrow = False

    def by_columns(self, rows: int) -> bool:
        """Whether the logits of so many rows lie by columns."""
        return self.narrow and by_columns(rows)


head = Head()


def adapt(model: Any) -> None:
    """Let a loaded model's layers compute in the ways that are fastest here."""
    head.narrow = False
    if not cpu_math.USED:
        return
    for module in model.modules():
        if type(module) not in (Linear, Embedding) or module.weight.dtype != mx.float32:
            continue
        narrow = is_narrow_head(module)
        if narrow or (few_rows() and needs_parts(module)):
            module[PARTS] = {}
        elif not few_rows():
            lay_out_by_inputs(module)
        else:
            continue
        module.__class__ = CpuLinear if type(module) is Linear else CpuEmbedding
        head.narrow = head.narrow or narrow


def is_narrow_head(layer: Any) -> bool:
    """Whether a layer is as tall as a vocabulary and narrow."""
    outputs, inputs = layer.weight.shape
    greatest = GREATEST_WIDTH if few_rows() else GREATEST_WIDTH_WITHOUT
    return bool(outputs >= LEAST_VOCABULARY and inputs <= greatest)


def by_columns(rows: int) -> bool:
    """Whether a narrow head is faster as `weight @ x.T` with so many rows. Threads share such a
    product badly."""
    return rows > few_rows() if few_rows() else openblas.threads() == 1


@cache
def few_rows() -> int:
    """Up to how many rows OpenBLAS' kernels for small products are used; 0 if it has none."""
    return FEW_ROWS if openblas.core_name() in CORES_WITH_SMALL_KERNELS else 0
