"""Random numbers that depend on nothing but a seed, a position and a token id.

Sampling by the Gumbel-max trick with this noise is stable: a rounding difference in the logits
changes the token only where two candidates are that close. Drawing one number and walking the
cumulative distribution is not, because rounding moves all of its thousands of borders.
"""

from __future__ import annotations

import mlx.core as mx

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
BELOW_ONE = 1 - 2.0**-24


def mix(z: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014): a bijection on 64-bit integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def row_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit numbers for the token at output position `position`."""
    state = mix((seed + GOLDEN_GAMMA) & MASK)
    bits = mix((state + (position + 1) * GOLDEN_GAMMA) & MASK)
    return bits >> 32, bits & 0xFFFFFFFF


def scramble(x: mx.array) -> mx.array:
    """The finalizer of MurmurHash3 (Appleby, public domain): a bijection on uint32."""
    x = (x ^ (x >> 16)) * mx.array(0x85EBCA6B, dtype=mx.uint32)
    x = (x ^ (x >> 13)) * mx.array(0xC2B2AE35, dtype=mx.uint32)
    return x ^ (x >> 16)


def gumbel(keys: mx.array, token_ids: mx.array) -> mx.array:
    """Standard Gumbel noise [rows, n] float32 for row keys [rows, 2] uint32 and token ids [n] or
    [rows, n]. A token's noise is the same whichever other tokens are asked for."""
    first, second = keys[:, :1], keys[:, 1:]
    bits = scramble(scramble(token_ids.astype(mx.uint32) ^ first) + second)
    # Rounded to 1, a number would make any token win.
    uniform = mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, BELOW_ONE)
    return -mx.log(-mx.log(uniform))
