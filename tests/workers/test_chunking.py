"""Chunk sizes follow the measured costs and the inter-token budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.workers.chunking import (
    DECODE_STEPS_PER_GAP,
    FIRST_CHUNK_TOKENS,
    IDLE_BUDGETS,
    MIN_CHUNK_TOKENS,
    ChunkSizer,
)

BUDGET_S = 0.05


def observed(
    per_token_s: float,
    *,
    fixed_s: float = 0.0,
    decode_s: float = 0.0,
    sizes: tuple[int, ...] = (100,),
) -> ChunkSizer:
    """A sizer that has seen chunks of these sizes, of a model with these costs."""
    sizer = ChunkSizer(BUDGET_S, 512)
    for tokens in sizes:
        sizer.observe_chunk(tokens, fixed_s + tokens * per_token_s)
    sizer.observe_decode(decode_s)
    return sizer


def test_the_first_chunk_is_small() -> None:
    assert ChunkSizer(BUDGET_S, 512).size(decoding=False) == FIRST_CHUNK_TOKENS
    assert ChunkSizer(BUDGET_S, 10).size(decoding=False) == 10


def test_a_chunk_and_a_decode_step_fill_one_budget() -> None:
    assert observed(0.0005).size(decoding=True) == 100
    assert observed(0.0005, decode_s=0.02).size(decoding=True) == 60


def test_the_fixed_cost_is_told_from_the_cost_per_token() -> None:
    sizer = observed(0.0005, fixed_s=0.01, sizes=(10, 50, 20, 80))
    assert sizer.size(decoding=True) == pytest.approx(80, abs=1)


def test_chunks_of_one_size_are_taken_as_a_rate() -> None:
    sizer = observed(0.0005, fixed_s=0.01, sizes=(100, 100, 100))
    assert sizer.size(decoding=True) == 83


def test_where_a_decode_step_is_slow_the_gap_is_one_and_a_half_of_it() -> None:
    sizer = observed(0.002, decode_s=0.2)
    assert sizer.size(decoding=True) == int(0.2 * (DECODE_STEPS_PER_GAP - 1) / 0.002 + 1e-6)


def test_a_chunk_is_larger_when_nothing_decodes() -> None:
    assert observed(0.0005).size(decoding=False) == 100 * IDLE_BUDGETS


def test_a_fast_model_is_held_to_the_largest_chunk() -> None:
    assert observed(1e-9).size(decoding=True) == 512


def test_a_slow_model_still_moves() -> None:
    assert observed(1.0).size(decoding=True) == MIN_CHUNK_TOKENS


def test_what_was_not_measured_teaches_nothing() -> None:
    sizer = ChunkSizer(BUDGET_S, 512)
    sizer.observe_chunk(0, 1.0)
    sizer.observe_chunk(100, 0.0)
    assert sizer.size(decoding=True) == FIRST_CHUNK_TOKENS
    sizer = observed(0.0005, decode_s=0.02)
    sizer.observe_decode(0.0)
    assert sizer.size(decoding=True) == 60


def test_the_size_settles_on_a_new_rate() -> None:
    sizer = observed(0.0005)
    for _ in range(100):
        sizer.observe_chunk(100, 100 * 0.00025)
    assert sizer.size(decoding=True) in (199, 200)


@given(
    max_tokens=st.integers(1, 4096),
    budget_s=st.floats(0.001, 10),
    chunks=st.lists(st.tuples(st.integers(0, 4096), st.floats(1e-9, 100))),
    steps=st.lists(st.floats(0, 100)),
    decoding=st.booleans(),
)
def test_a_chunk_is_never_empty_and_never_too_large(
    max_tokens: int,
    budget_s: float,
    chunks: list[tuple[int, float]],
    steps: list[float],
    decoding: bool,
) -> None:
    sizer = ChunkSizer(budget_s, max_tokens)
    for tokens, seconds in chunks:
        sizer.observe_chunk(min(tokens, max_tokens), seconds)
    for seconds in steps:
        sizer.observe_decode(seconds)
    assert 1 <= sizer.size(decoding) <= max_tokens
