"""Chunk sizes follow the measured prefill rate and the inter-token budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.workers.chunking import FIRST_CHUNK_TOKENS, MIN_CHUNK_TOKENS, ChunkSizer


def observed(rate: float, *, budget_s: float = 0.05, max_tokens: int = 512) -> ChunkSizer:
    """A sizer that has seen one chunk at `rate` tokens per second."""
    sizer = ChunkSizer(budget_s, max_tokens)
    sizer.observe(100, 100 / rate)
    return sizer


def test_the_first_chunk_is_small() -> None:
    assert ChunkSizer(0.05, 512).size(decoding=False) == FIRST_CHUNK_TOKENS
    assert ChunkSizer(0.05, 10).size(decoding=False) == 10


def test_a_chunk_takes_one_budget_while_others_decode() -> None:
    assert observed(2000).size(decoding=True) == 100


def test_a_chunk_is_larger_when_nothing_decodes() -> None:
    assert observed(2000).size(decoding=False) == 100 * ChunkSizer.idle_factor


def test_a_fast_model_is_held_to_the_largest_chunk() -> None:
    assert observed(1e9).size(decoding=True) == 512


def test_a_slow_model_still_moves() -> None:
    assert observed(1).size(decoding=True) == MIN_CHUNK_TOKENS


def test_short_chunks_and_untimed_ones_teach_nothing() -> None:
    sizer = ChunkSizer(0.05, 512)
    sizer.observe(MIN_CHUNK_TOKENS - 1, 1.0)
    sizer.observe(0, 1.0)
    sizer.observe(100, 0.0)
    assert sizer.size(decoding=True) == FIRST_CHUNK_TOKENS


def test_one_odd_measurement_moves_the_size_only_a_little() -> None:
    sizer = observed(2000)
    sizer.observe(100, 100 / 4000)
    assert 100 < sizer.size(decoding=True) < 150


def test_the_size_settles_on_a_new_rate() -> None:
    sizer = observed(2000)
    for _ in range(50):
        sizer.observe(100, 100 / 4000)
    assert sizer.size(decoding=True) in (199, 200)


@given(
    max_tokens=st.integers(1, 4096),
    budget_s=st.floats(0.001, 10),
    chunks=st.lists(st.tuples(st.integers(0, 4096), st.floats(1e-9, 100))),
    decoding=st.booleans(),
)
def test_a_chunk_is_never_empty_and_never_too_large(
    max_tokens: int, budget_s: float, chunks: list[tuple[int, float]], decoding: bool
) -> None:
    sizer = ChunkSizer(budget_s, max_tokens)
    for tokens, seconds in chunks:
        sizer.observe(min(tokens, max_tokens), seconds)
    assert 1 <= sizer.size(decoding) <= max_tokens
