"""Random numbers that depend on nothing but a seed and a position."""

from __future__ import annotations

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
# The largest value is short of 1 by more than a float32 rounding step.
MANTISSA_BITS = 22


def mix(z: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014): a bijection on 64-bit integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) with which the token at output position `position` is drawn."""
    state = mix((seed + GOLDEN_GAMMA) & MASK)
    bits = mix((state + (position + 1) * GOLDEN_GAMMA) & MASK)
    return (bits >> (64 - MANTISSA_BITS)) / (1 << MANTISSA_BITS)
