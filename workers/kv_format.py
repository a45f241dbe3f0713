"""How keys and values are held: as they are, or quantized. Every tensor is a list of planes, arrays
that share all dimensions but the last, so that storage moves planes without knowing what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention

from mlxfleet.common.errors import ModelError
from mlxfleet.workers import cpu_math

GROUP_SIZES = (64, 32)

Planes = list[mx.array]


class Format(Protocol):
    """A way of holding a tensor [..., dim]."""

    def planes(self, tensor: mx.array) -> Planes:
        """Encode; plane i has shape [..., dim_i]."""

    def attend(
        self,
        queries: mx.array,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Attention over encoded keys and values [rows, KV heads, length, dim_i]."""


class Plain:
    """Keys and values as the model computes them."""

    def planes(self, tensor: mx.array) -> Planes:
        """One plane: the tensor."""
        return [tensor]

    def attend(
        self,
        queries: mx.array,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """MLX's attention."""
        if cpu_math.USED and sinks is None and not isinstance(mask, str):
            return cpu_math.attention(queries, keys[0], values[0], scale, mask)
        return mx.fast.scaled_dot_product_attention(
            queries, keys[0], values[0], scale=scale, mask=mask, sinks=sinks
        )


@dataclass(frozen=True)
class Quantized:
    """MLX's affine quantization in groups along the last dimension."""

    bits: int
    group_size: int

    @classmethod
    def for_dims(cls, bits: int, dims: Sequence[int]) -> Quantized:
        """With the largest group that divides all dimensions; ModelError if there is none."""
        for size in GROUP_SIZES:
            if all(dim % size == 0 for dim in dims):
                return cls(bits, size)
        raise ModelError(
            f"--kv-bits {bits}: heads of {sorted(set(dims))} values cannot be cut into groups of"
            f" {' or '.join(map(str, GROUP_SIZES))}; start without --kv-bits"
        )

    def planes(self, tensor: mx.array) -> Planes:
        """Packed values, scales, biases."""
        return list(mx.quantize(tensor, group_size=self.group_size, bits=self.bits))

    def attend(
        self,
        queries: mx.array,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """mlx-lm's attention over quantized keys and values."""
        if sinks is not None:
            raise ModelError("--kv-bits: a model with attention sinks needs full precision")
        attention: Any = quantized_scaled_dot_product_attention
        output: mx.array = attention(
            queries,
            tuple(keys),
            tuple(values),
            scale=scale,
            mask=mask,
            group_size=self.group_size,
            bits=self.bits,
        )
        return output


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps for a token: keys [kv_heads, key_dim], values [kv_heads, value_dim]."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: mx.Dtype

    def empty(self, format: Format, rows: int, length: int) -> Planes:
        """Zeroed planes of keys, then of values, [rows, kv_heads, length, dim_i]."""
        return [
            mx.zeros((rows, self.kv_heads, length, plane.shape[-1]), dtype=plane.dtype)
            for dim in (self.key_dim, self.value_dim)
            for plane in format.planes(mx.zeros((1, dim), dtype=self.dtype))
        ]

    def token_bytes(self, format: Format) -> int:
        """Bytes that one token takes in this layer."""
        return sum(plane.nbytes for plane in self.empty(format, 1, 1))


def chunk_mask(tokens: int, start: int, dtype: mx.Dtype) -> mx.array | str | None:
    """What `tokens` queries may see that continue a sequence of `start` tokens."""
    if tokens == 1:
        return None
    if not cpu_math.USED:
        return "causal"
    seen = mx.arange(start + tokens)[None] <= mx.arange(start, start + tokens)[:, None]
    return additive(seen, dtype)[None, None]


def additive(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """A mask to be added to scores."""
    return mx.where(seen, mx.array(0.0, dtype), mx.array(-mx.inf, dtype))
