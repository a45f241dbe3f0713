"""Chained hashes of blocks of tokens."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.block_hashes import NO_BLOCKS, block_hash, block_hashes
from mlxfleet.common.kv_sizes import BLOCK_TOKENS

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=4 * BLOCK_TOKENS)


@given(TOKENS)
def test_whole_blocks_are_hashed_one_after_the_other(token_ids: list[int]) -> None:
    hashes = block_hashes(token_ids)
    assert len(hashes) == len(token_ids) // BLOCK_TOKENS
    before = NO_BLOCKS
    for index, found in enumerate(hashes):
        before = block_hash(before, token_ids[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
        assert found == before
        assert 0 <= found < 2**64


def test_a_block_stands_for_all_before_it_too() -> None:
    some, others = list(range(BLOCK_TOKENS)), list(range(1, BLOCK_TOKENS + 1))
    assert block_hashes(some * 2)[1] != block_hashes(others + some)[1]
    assert block_hashes(some * 2)[0] == block_hashes(some + others)[0]


def test_every_process_has_the_same_hashes() -> None:
    module = "mlxfleet.common.block_hashes"
    code = f"from {module} import block_hashes; print(block_hashes(range(1000))[-1])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert int(found.stdout) == block_hashes(range(1000))[-1] == 16781373187440967525


def test_what_is_no_token_id_is_hashed_too() -> None:
    assert block_hash(0, [-1, 2**70]) == block_hash(0, [2**32 - 1, 0])
