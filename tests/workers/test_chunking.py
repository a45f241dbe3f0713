"""Chunk sizes follow the measured costs and the inter-token budget."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.kv_sizes import CHUNK_TILE
from mlxfleet.workers.chunking import (
    DECODE_STEPS_PER_GAP,
    FIRST_CHUNK_TOKENS,
    IDLE_PASS_S,
    MARGIN,
    ChunkSizer,
    PassCost,
    share_out,
)

BUDGET_S = 0.05
# Decoding rows, prompt tokens, position of the first of them.
SIZES = ((4, 0, 0), (1, 0, 0), (0, 50, 0), (0, 200, 0), (3, 100, 400), (0, 200, 1000), (9, 16, 40))


class Model:
    """A model with these costs, whose passes a sizer watches."""

    def __init__(
        self, per_token_s: float, *, fixed_s: float = 0.0, per_pair_s: float = 0.0
    ) -> None:
        self.sizer = ChunkSizer(BUDGET_S, 512)
        self.costs = fixed_s, per_token_s, per_pair_s

    def seconds(self, rows: int, tokens: int, start: int) -> float:
        """How long a pass takes."""
        fixed_s, per_token_s, per_pair_s = self.costs
        return fixed_s + (rows + tokens) * per_token_s + pairs(tokens, start) * per_pair_s

    def run(self, *passes: tuple[int, int, int], times: int = 1) -> ChunkSizer:
        """Let the sizer see passes of (rows, tokens, start)."""
        for rows, tokens, start in passes * times:
            seconds = self.seconds(rows, tokens, start)
            self.sizer.observe(
                rows=rows, tokens=tokens, pairs=pairs(tokens, start), seconds=seconds
            )
        return self.sizer

    def check_budget(self, budget_s: float, rows: int, start: int, *, over: int = 0) -> None:
        """A pass fills the budget, but for what is lost to whole tiles and to fitting; `over` as
        many tokens may be more than that."""
        size = self.sizer.size(rows, start)
        assert self.seconds(rows, size - over, start) <= 1.02 * budget_s
        assert self.seconds(rows, size - over + 2 * CHUNK_TILE, start) > budget_s


def pairs(tokens: int, start: int) -> float:
    """How many tokens attention compares with so many from a position on."""
    return tokens * (start + tokens / 2)


def test_the_prefill_rate_is_that_of_the_passes_to_come() -> None:
    assert ChunkSizer(BUDGET_S, 512).prefill_rate(0) == 0
    sizer = Model(0.001, fixed_s=0.004).run(*SIZES, times=20)
    idle, busy = sizer.prefill_rate(0), sizer.prefill_rate(16)
    assert idle == pytest.approx(1000, rel=0.15)
    assert 0 < busy < 0.8 * idle


def test_the_first_chunk_is_small() -> None:
    assert ChunkSizer(BUDGET_S, 512).size(0, 0) == FIRST_CHUNK_TOKENS
    assert ChunkSizer(BUDGET_S, 10).size(0, 0) == 10


def test_one_pass_is_taken_as_a_rate() -> None:
    sizer = Model(0.0005, fixed_s=0.01).run((0, 100, 0))
    assert 1 + sizer.size(1, 0) == int(MARGIN * BUDGET_S / 0.0006) // CHUNK_TILE * CHUNK_TILE


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize("start", [0, 1000])
def test_rows_and_chunk_fill_one_budget(rows: int, start: int) -> None:
    model = Model(0.0003, fixed_s=0.01, per_pair_s=1e-7)
    model.run(*SIZES, times=30)
    model.check_budget(MARGIN * BUDGET_S, rows, start)


def test_rows_and_chunk_fill_whole_tiles() -> None:
    sizer = Model(0.0003, fixed_s=0.01).run(*SIZES)
    assert [(rows + sizer.size(rows, 0)) % CHUNK_TILE for rows in range(1, 40)] == [0] * 39


def test_where_a_decode_step_is_slow_the_gap_is_one_and_a_half_of_it() -> None:
    model = Model(0.001, fixed_s=0.2)
    model.run(*SIZES, times=30)
    budget_s = DECODE_STEPS_PER_GAP * (0.2 + 4 * 0.001)
    model.check_budget(budget_s, 4, 0, over=CHUNK_TILE // 2)


@pytest.mark.parametrize("per_token_s", [0.0009, 0.001, 0.0011, 0.0013])
def test_a_slow_decode_step_leaves_room_for_a_tile_however_its_tokens_were_timed(
    per_token_s: float,
) -> None:
    sizer = Model(per_token_s, fixed_s=0.05).run(*SIZES, times=30)
    assert 8 + sizer.size(8, 0) == 2 * CHUNK_TILE


@pytest.mark.parametrize("start", [0, 1000])
def test_a_chunk_is_larger_when_nothing_decodes(start: int) -> None:
    model = Model(0.005, fixed_s=0.01, per_pair_s=2e-6)
    model.run(*SIZES, times=30)
    model.check_budget(IDLE_PASS_S, 0, start)


def test_a_fast_model_takes_the_largest_chunk_when_nothing_decodes() -> None:
    sizer = Model(0.0003, fixed_s=0.01).run(*SIZES, times=30)
    assert sizer.size(0, 0) == 512


def test_a_chunk_far_into_a_prompt_is_smaller() -> None:
    sizer = Model(0.0003, fixed_s=0.01, per_pair_s=1e-6).run(*SIZES, times=30)
    assert sizer.size(0, 4000) < sizer.size(0, 0)


def test_passes_of_one_size_do_not_unlearn_the_fixed_cost() -> None:
    model = Model(0.0005, fixed_s=0.02)
    model.run(*SIZES, times=30)
    model.run((0, 100, 0), times=100)
    model.check_budget(MARGIN * BUDGET_S, 4, 0)


def test_long_passes_that_vary_do_not_blur_short_ones() -> None:
    cost = PassCost()
    varied = itertools.cycle([0.7, 1.2, 0.9, 1.3, 0.75])
    for tokens in [0, 16, 48, 512] * 200:
        seconds = 0.004 + 0.002 * tokens
        share = next(varied) if tokens == 512 else 1.0
        cost.observe(1, tokens, pairs(tokens, 0), seconds * share)
    for tokens in (0, 16, 48):
        assert cost.pass_s(1, tokens, 0) == pytest.approx(0.004 + 0.002 * tokens, rel=0.02)


def test_a_fast_model_is_held_to_the_largest_chunk() -> None:
    sizer = Model(1e-9).run((0, 100, 0))
    assert sizer.size(0, 0) == 512
    assert 512 - CHUNK_TILE < sizer.size(1, 0) <= 512


def test_a_slow_model_still_moves() -> None:
    sizer = Model(1.0).run((0, 100, 0))
    assert sizer.size(0, 0) == CHUNK_TILE
    assert sizer.size(1, 0) == CHUNK_TILE - 1


def test_what_was_not_measured_teaches_nothing() -> None:
    sizer = ChunkSizer(BUDGET_S, 512)
    sizer.observe(rows=0, tokens=0, pairs=0, seconds=1.0)
    sizer.observe(rows=3, tokens=100, pairs=0, seconds=0.0)
    assert sizer.size(1, 0) == FIRST_CHUNK_TOKENS


def test_the_size_settles_on_new_costs() -> None:
    model = Model(0.0005, fixed_s=0.01)
    model.run(*SIZES, times=30)
    model.costs = 0.005, 0.00025, 1e-7
    model.run(*SIZES, times=60)
    model.check_budget(MARGIN * BUDGET_S, 4, 0)


@given(
    max_tokens=st.integers(1, 4096),
    budget_s=st.floats(0.001, 10),
    passes=st.lists(
        st.tuples(
            st.integers(0, 300), st.integers(0, 4096), st.integers(0, 100_000), st.floats(0, 100)
        )
    ),
    rows=st.integers(0, 300),
    start=st.integers(0, 100_000),
)
def test_a_chunk_is_never_empty_and_never_too_large(
    max_tokens: int,
    budget_s: float,
    passes: list[tuple[int, int, int, float]],
    rows: int,
    start: int,
) -> None:
    sizer = ChunkSizer(budget_s, max_tokens)
    for decoding, wanted, position, seconds in passes:
        tokens = min(wanted, max_tokens)
        sizer.observe(rows=decoding, tokens=tokens, pairs=pairs(tokens, position), seconds=seconds)
    assert 1 <= sizer.size(rows, start) <= max_tokens


def test_one_prompt_gets_the_whole_pass() -> None:
    assert share_out(100, [300]) == [100]
    assert share_out(100, [30]) == [30]


def test_short_prompts_get_up_to_half_the_shortest_first() -> None:
    assert share_out(100, [300, 30, 20]) == [50, 30, 20]
    assert share_out(100, [300, 40, 20]) == [80, 0, 20]


def test_a_prompt_that_would_not_be_done_waits_behind_the_oldest() -> None:
    assert share_out(100, [300, 60]) == [100, 0]


def test_what_the_oldest_leaves_goes_to_the_next_in_order() -> None:
    assert share_out(100, [10, 300, 200]) == [10, 90, 0]


@given(room=st.integers(1, 600), wanted=st.lists(st.integers(1, 600), min_size=1))
def test_a_pass_is_shared_out_completely_and_the_oldest_gets_half(
    room: int, wanted: list[int]
) -> None:
    shares = share_out(room, wanted)
    assert sum(shares) == min(room, sum(wanted))
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert shares[0] >= min(wanted[0], room - room // 2)
