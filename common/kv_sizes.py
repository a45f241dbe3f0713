"""Sizes that a scheduler and its worker agree on without a word."""

from __future__ import annotations

BLOCK_TOKENS = 32
"""Tokens in a block of the cold store."""

LEAST_CAPACITY = 256
"""Tokens in a slot of the smallest slab, a multiple of BLOCK_TOKENS."""


def capacity_for(tokens: int) -> int:
    """Tokens that the smallest slot has room for that holds this many."""
    capacity = LEAST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return capacity


def blocks_for(tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // BLOCK_TOKENS)


CHUNK_TILE = 16
"""Tokens by which the prompt part of a pass makes it grow, with its decoding rows: passes of 16
tokens take no longer than those of 8, and those of 24 longer than those of 32."""
