"""Chained hashes of blocks of tokens: a block's hash stands for it and for all before it.

The same on every machine, so a router and its nodes mean the same block by the same number.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from mlxfleet.common.kv_sizes import BLOCK_TOKENS

HASH_BYTES = 8
TOKEN_BYTES = 4
NO_BLOCKS = 0
"""What the first block's hash is chained to."""


def block_hash(before: int, tokens: Sequence[int]) -> int:
    """64-bit hash of a block of tokens that follows the block with the hash `before`."""
    return chained(before.to_bytes(HASH_BYTES, "little"), packed(tokens))


def block_hashes(token_ids: Sequence[int]) -> list[int]:
    """Hashes of all whole blocks of a prompt. 8,000 tokens take about 0.3 ms."""
    data = packed(token_ids)
    size = BLOCK_TOKENS * TOKEN_BYTES
    hashes = []
    before = NO_BLOCKS
    for end in range(size, len(data) + 1, size):
        before = chained(before.to_bytes(HASH_BYTES, "little"), data[end - size : end])
        hashes.append(before)
    return hashes


def chained(before: bytes, data: bytes) -> int:
    """BLAKE2b with the hash before as its salt, so that 32 tokens are one compression."""
    digest = blake2b(data, digest_size=HASH_BYTES, salt=before).digest()
    return int.from_bytes(digest, "little")


def packed(token_ids: Sequence[int]) -> bytes:
    """Tokens as 32-bit little-endian numbers. What is no token id loses its upper bits."""
    try:
        numbers = array("I", token_ids)
    except OverflowError:
        numbers = array("I", [token & 0xFFFFFFFF for token in token_ids])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
