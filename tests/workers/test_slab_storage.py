"""Slabs: rows that grow, move, share passes, go to the cold store and start from it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.kv_sizes import BLOCK_TOKENS, LEAST_CAPACITY, blocks_for
from mlxfleet.common.messages import Admit, Prefill, Sampling, Step, Store
from mlxfleet.workers import cold_store
from mlxfleet.workers.engine import Engine
from mlxfleet.workers.kv_format import Plain, Quantized
from mlxfleet.workers.kv_storage import slab_layout
from mlxfleet.workers.mlx_lm_storage import prefill
from mlxfleet.workers.row import Chunk, Row
from mlxfleet.workers.sampling import SamplingRow
from mlxfleet.workers.slab_storage import SlabStorage
from tests.workers.engine_driver import (
    COLD_BLOCKS,
    Driver,
    Request,
    engine_for,
    generate_alone,
    storage_for,
)
from tests.workers.tiny_models import HEAD_DIM, LAYERS, VOCAB_SIZE, build

MODEL = build("llama")
TOKEN_BYTES = LAYERS * 2 * 2 * HEAD_DIM * 4
SLOT_BYTES = LEAST_CAPACITY * TOKEN_BYTES
GREEDY = Sampling(seed=0, temperature=0.0, max_tokens=6)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Token ids that differ from those of other seeds and lengths."""
    return [(i * i + 7 * i * (seed + 1) + 3 * seed + length) % VOCAB_SIZE for i in range(length)]


@functools.cache
def alone(length: int, seed: int = 0, max_tokens: int = 6) -> list[int]:
    """What mlx-lm generates for `prompt_of`, and surely so."""
    reference = generate_alone(MODEL, prompt_of(length, seed), max_tokens)
    assert reference.lead > 1e-4
    return reference.ids


def request(rid: str, length: int, seed: int = 0, max_tokens: int = 6, **more: Any) -> Request:
    sampling = Sampling(seed=0, temperature=0.0, max_tokens=max_tokens)
    return Request(rid=rid, prompt=prompt_of(length, seed), sampling=sampling, **more)


def admit(engine: Engine, rid: str, length: int, seed: int = 0, **cached: Any) -> None:
    prompt = prompt_of(length, seed)
    engine.admit(Admit(rid=rid, token_ids=prompt, n_output=0, sampling=GREEDY, **cached))


def run(engine: Engine) -> list[Step]:
    """Step until nothing is left to do, dropping no row."""
    steps = []
    while engine.busy:
        steps.append(engine.step("e"))
        assert len(steps) < 100
    return steps


def tokens_of(steps: Sequence[Step], rid: str) -> list[int]:
    return [token for s in steps for r, token in zip(s.rids, s.ids, strict=True) if r == rid]


def prefilled(steps: Sequence[Step]) -> list[tuple[str, int]]:
    return [chunk for step in steps for chunk in step.prefilled]


# --- rows that grow -----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [250, 255, 256, 257, 508, 512, 513])
def test_a_row_outgrows_its_class_while_it_decodes(length: int) -> None:
    results = Driver(engine_for(MODEL), [request("a", length)], chunks=[100]).run()
    assert results["a"].ids == alone(length)


def test_a_row_outgrows_one_class_after_the_other() -> None:
    results = Driver(engine_for(MODEL), [request("a", 240, max_tokens=300)], chunks=[300]).run()
    assert results["a"].ids == alone(240, max_tokens=300)


def test_rows_of_several_classes_grow_side_by_side() -> None:
    lengths = [3, 254, 250, 510, 1, 253, 600, 40]
    requests = [request(str(n), n, seed=i, max_tokens=12) for i, n in enumerate(lengths)]
    results = Driver(engine_for(MODEL), requests, chunks=[90, 200, 7]).run()
    for seed, length in enumerate(lengths):
        assert results[str(length)].ids == alone(length, seed, max_tokens=12)


def last_logits(storage: Any, row: Row, token_ids: Sequence[int], chunks: Sequence[int]) -> Any:
    """Logits after `token_ids`, run in chunks and a last step; also of rows that were admitted
    with fewer."""
    done = 0
    for size in chunks:
        result = storage.run([], None, [Chunk(row, list(token_ids[done : done + size]))])
        mx.eval(result.arrays)
        done += size
    assert done == len(token_ids) - 1
    return storage.run([row], mx.array(token_ids[-1:], dtype=mx.uint32), []).logits


def row_of(token_ids: Sequence[int]) -> Row:
    return Row("a", list(token_ids), SamplingRow(GREEDY, list(token_ids), 0))


def test_a_row_outgrows_its_class_while_it_is_prefilled() -> None:
    storage = storage_for(MODEL)
    ids = prompt_of(701)
    neighbour, row = row_of(prompt_of(2)), row_of(ids[:10])
    storage.add(neighbour)
    storage.add(row)
    logits = last_logits(storage, row, ids, [200, 56, 1, 243, 200])
    assert mx.allclose(logits, MODEL(mx.array([ids]))[:, -1], atol=1e-4)


# --- passes that rows share ---------------------------------------------------------------------


def test_several_prompts_are_prefilled_in_one_pass_beside_decoding() -> None:
    engine = engine_for(MODEL)
    admit(engine, "a", 1)
    admit(engine, "b", 1, seed=1)
    steps = [engine.step("e"), engine.step("e")]
    for seed, (rid, length) in enumerate([("c", 30), ("d", 270), ("e", 2), ("f", 12)]):
        admit(engine, rid, length, seed)
    engine.prefill(Prefill(["c", "d", "e"], [20, 100, 1]))
    engine.prefill(Prefill(["d", "f", "c"], [169, 11, 9]))
    steps += run(engine)
    together = [step for step in steps if len(step.prefilled) == 3]
    assert [step.prefilled for step in together] == [
        [("c", 20), ("d", 100), ("e", 1)],
        [("d", 169), ("f", 11), ("c", 9)],
    ]
    # A prompt's last token decodes in the pass of its last chunk.
    assert [step.rids for step in together] == [["a", "b", "e"], ["a", "b", "e", "d", "f", "c"]]
    for rid, length, seed in [
        ("a", 1, 0),
        ("b", 1, 1),
        ("c", 30, 0),
        ("d", 270, 1),
        ("e", 2, 2),
        ("f", 12, 3),
    ]:
        assert tokens_of(steps, rid) == alone(length, seed)


def test_prompts_alone_in_a_pass_do_not_mix() -> None:
    engine = engine_for(MODEL)
    admit(engine, "a", 40)
    admit(engine, "b", 50, seed=1)
    engine.prefill(Prefill(["a", "b"], [20, 30]))
    assert prefilled(run(engine)) == [("a", 20), ("b", 30)]
    engine.prefill(Prefill(["b", "a"], [19, 19]))
    steps = run(engine)
    assert tokens_of(steps, "a") == alone(40)
    assert tokens_of(steps, "b") == alone(50, seed=1)


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 33])
def test_passes_of_any_number_of_rows_agree_with_rows_alone(rows: int) -> None:
    engine = engine_for(MODEL)
    for index in range(rows):
        admit(engine, str(index), 1, seed=index)
    steps = run(engine)
    for index in range(rows):
        assert tokens_of(steps, str(index)) == alone(1, seed=index)


# --- slots --------------------------------------------------------------------------------------


def test_slots_of_dropped_rows_are_closed_up_and_reused() -> None:
    storage: Any = storage_for(MODEL)
    engine = Engine(storage, vocab_size=VOCAB_SIZE, eos_ids=frozenset())
    for index in range(6):
        admit(engine, str(index), 20, seed=index)
    engine.prefill(Prefill([str(i) for i in range(6)], [19] * 6))
    steps = [engine.step("e"), engine.step("e")]
    allocated = storage.allocated_bytes
    for rid in ("0", "3", "2"):
        engine.drop(rid)
    steps.append(engine.step("e"))
    for index in (6, 7, 8):
        admit(engine, str(index), 20, seed=index)
    assert storage.allocated_bytes == allocated
    engine.prefill(Prefill(["8", "6", "7"], [19, 19, 19]))
    steps += run(engine)
    for index in (1, 4, 5, 6, 7, 8):
        assert tokens_of(steps, str(index)) == alone(20, seed=index)


def test_slots_of_prefilling_rows_lie_among_those_of_decoding_rows() -> None:
    engine = engine_for(MODEL)
    for index in range(5):
        admit(engine, str(index), 30, seed=index)
    engine.prefill(Prefill(["1", "4"], [29, 29]))
    steps = [engine.step("e"), engine.step("e")]
    engine.prefill(Prefill(["3", "0"], [10, 29]))
    steps.append(engine.step("e"))
    engine.drop("4")
    engine.prefill(Prefill(["3", "2"], [19, 29]))
    steps += run(engine)
    for index in range(4):
        assert tokens_of(steps, str(index)) == alone(30, seed=index)


LENGTHS = [1, 2, 33, 251, 254, 257]


@settings(derandomize=True, deadline=None, database=None, max_examples=12)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(range(len(LENGTHS))),
            st.integers(0, 12),
            st.none() | st.tuples(st.integers(0, 200), st.integers(0, 4)),
        ),
        min_size=2,
        max_size=10,
    ),
    st.lists(st.integers(1, 260), min_size=1, max_size=4),
)
def test_rows_are_alone_in_any_company(
    visits: list[tuple[int, int, tuple[int, int] | None]], chunks: list[int]
) -> None:
    """Rows of two classes come, grow, and go when they end or before."""
    requests = [
        request(str(i), LENGTHS[which], seed=which, arrives=arrives, abort_after=abort)
        for i, (which, arrives, abort) in enumerate(visits)
    ]
    results = Driver(engine_for(MODEL), requests, chunks).run()
    for i, (which, _, abort) in enumerate(visits):
        expected = alone(LENGTHS[which], seed=which)
        ids = results[str(i)].ids
        assert ids == expected[: len(ids)]
        assert abort is not None or ids == expected


# --- the cold store -----------------------------------------------------------------------------


def finished(
    engine: Engine, length: int, blocks: list[int], *, start: int = 0, seed: int = 0
) -> None:
    """Run a row to its end, store what it holds from `start` on, and drop it."""
    admit(engine, "finished", length, seed)
    engine.prefill(Prefill(["finished"], [length - 1]))
    assert tokens_of(run(engine), "finished") == alone(length, seed)
    engine.store(Store("finished", start, blocks))
    engine.drop("finished")


@pytest.mark.parametrize(
    ("length", "cached", "blocks"),
    [
        (100, 32, [0]),
        (100, 64, [7, 2]),
        (100, 96, [2, 1, 0]),
        (100, 99, [9, 3, 5, 4]),
        (100, 45, [63, 0]),
        (33, 32, [1]),
        (300, 288, [11, 1, 13, 3, 15, 5, 17, 7, 19]),
    ],
)
@pytest.mark.parametrize("segment", [1, 4, 64])
def test_a_row_starts_with_what_another_has_left(
    length: int, cached: int, blocks: list[int], segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_store, "SEGMENT_BLOCKS", segment)
    engine = engine_for(MODEL)
    finished(engine, length, blocks)
    admit(engine, "a", length, cached_tokens=cached, cached_blocks=blocks)
    engine.prefill(Prefill(["a"], [length]))
    steps = run(engine)
    assert prefilled(steps) == [("a", length - 1 - cached)]
    assert tokens_of(steps, "a") == alone(length)


def test_cached_tokens_are_read_and_not_computed() -> None:
    """A row that is given another's blocks goes on as if it had the other's prompt."""
    engine = engine_for(MODEL)
    finished(engine, 100, [3, 1, 2])
    prompt = [5] * 96 + prompt_of(100)[96:]
    cached = {"cached_tokens": 96, "cached_blocks": [3, 1, 2]}
    engine.admit(Admit(rid="a", token_ids=prompt, n_output=0, sampling=GREEDY, **cached))
    engine.prefill(Prefill(["a"], [3]))
    steps = run(engine)
    assert tokens_of(steps, "a") == alone(100)
    assert tokens_of(steps, "a") != generate_alone(MODEL, prompt, 6).ids


def test_a_row_whose_whole_prompt_is_cached_decodes_at_once() -> None:
    engine = engine_for(MODEL)
    finished(engine, 65, [0, 1])
    admit(engine, "a", 65, cached_tokens=64, cached_blocks=[0, 1])
    steps = run(engine)
    assert prefilled(steps) == []
    assert tokens_of(steps, "a") == alone(65)


def test_blocks_may_be_stored_at_different_times() -> None:
    engine = engine_for(MODEL)
    finished(engine, 100, [5])
    finished(engine, 100, [20, 3], start=BLOCK_TOKENS)
    admit(engine, "a", 100, cached_tokens=96, cached_blocks=[5, 20, 3])
    engine.prefill(Prefill(["a"], [3]))
    assert tokens_of(run(engine), "a") == alone(100)


def test_output_is_cached_like_a_prompt() -> None:
    engine = engine_for(MODEL)
    finished(engine, 60, [0, 1, 2])
    prompt = [*prompt_of(60), *alone(60), 8, 9]
    cached = {"cached_tokens": 65, "cached_blocks": [0, 1, 2]}
    engine.admit(Admit(rid="a", token_ids=prompt, n_output=0, sampling=GREEDY, **cached))
    engine.prefill(Prefill(["a"], [2]))
    steps = run(engine)
    assert prefilled(steps) == [("a", 2)]
    assert tokens_of(steps, "a") == generate_alone(MODEL, prompt, 6).ids


def test_a_running_row_is_stored_as_it_is_and_goes_on() -> None:
    engine = engine_for(MODEL)
    admit(engine, "a", 70)
    engine.prefill(Prefill(["a"], [69]))
    steps = [engine.step("e"), engine.step("e")]
    engine.store(Store("a", 0, [4, 6]))
    steps.append(engine.step("e"))
    engine.store(Store("a", 64, [8]))
    admit(engine, "b", 70, cached_tokens=69, cached_blocks=[4, 6, 8])
    steps += run(engine)
    assert tokens_of(steps, "a") == alone(70)
    assert tokens_of(steps, "b") == alone(70)


def test_blocks_outlast_what_they_were_stored_from() -> None:
    engine = engine_for(MODEL)
    finished(engine, 100, [0, 1, 2])
    results = Driver(engine, [request(str(i), 90, seed=i + 1) for i in range(4)], [40]).run()
    assert all(results[str(i)].ids == alone(90, seed=i + 1) for i in range(4))
    for rid in ("a", "b"):
        admit(engine, rid, 100, cached_tokens=96, cached_blocks=[0, 1, 2])
    engine.prefill(Prefill(["a", "b"], [3, 3]))
    steps = run(engine)
    assert tokens_of(steps, "a") == tokens_of(steps, "b") == alone(100)


def test_blocks_can_be_written_again() -> None:
    engine = engine_for(MODEL)
    finished(engine, 100, [0, 1, 2])
    finished(engine, 100, [2, 0, 1], seed=1)
    admit(engine, "a", 100, seed=1, cached_tokens=96, cached_blocks=[2, 0, 1])
    engine.prefill(Prefill(["a"], [3]))
    assert tokens_of(run(engine), "a") == alone(100, seed=1)


def test_a_row_that_started_from_the_cold_store_outgrows_its_class() -> None:
    engine = engine_for(MODEL)
    blocks = list(range(blocks_for(254)))
    finished(engine, 254, blocks)
    admit(engine, "a", 254, cached_tokens=253, cached_blocks=blocks)
    assert tokens_of(run(engine), "a") == alone(254)


def test_storing_a_row_that_is_gone_does_nothing() -> None:
    engine = engine_for(MODEL)
    engine.store(Store("nobody", 0, [0]))
    storage_for(MODEL).store(row_of([1, 2]), 0, [0])


@pytest.mark.parametrize("block", [-1, COLD_BLOCKS])
def test_a_block_outside_the_store_is_refused(block: int) -> None:
    storage = storage_for(MODEL)
    row = row_of([1, 2])
    storage.add(row)
    with pytest.raises(ValueError, match="outside the store"):
        storage.store(row, 0, [block])


# --- quantized ----------------------------------------------------------------------------------


def spread_of_difference(some: mx.array, others: mx.array) -> float:
    """Mean difference of logits as a share of their standard deviation."""
    return float((mx.mean(mx.abs(some - others)) / mx.std(others)).item())


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.05), (4, 0.6)])
def test_quantized_rows_stay_close_to_full_precision(
    head_dim: int, bits: int, tolerance: float
) -> None:
    model = build("llama", head_dim=head_dim)
    storage = storage_for(model, kv_bits=bits)
    ids = prompt_of(300)
    row = row_of(ids[:10])
    storage.add(row_of([1]))
    storage.add(row)
    logits = last_logits(storage, row, ids, [100, 150, 10, 39])
    alone = model(mx.array([ids]))[:, -1]
    assert 0 < spread_of_difference(logits, alone) < tolerance


def test_quantized_rows_start_from_the_cold_store() -> None:
    model = build("llama", head_dim=32)
    storage = storage_for(model, kv_bits=8)
    ids = prompt_of(100)
    first, second = row_of(ids), row_of(ids)
    storage.add(first)
    logits = last_logits(storage, first, ids, [99])
    storage.store(first, 0, [9, 2, 5, 1])
    storage.drop(first)
    storage.add(second)
    storage.load(second, [9, 2, 5, 1], 99)
    again = storage.run([second], mx.array(ids[-1:], dtype=mx.uint32), []).logits
    assert mx.allclose(again, logits, atol=1e-5)


def test_the_largest_group_that_divides_all_heads_is_taken() -> None:
    assert Quantized.for_dims(8, [64, 128]) == Quantized(8, 64)
    assert Quantized.for_dims(4, [64, 96]) == Quantized(4, 32)


# --- memory -------------------------------------------------------------------------------------


def storage_of(budget_bytes: int, expected_rows: int = 0) -> SlabStorage:
    layout = slab_layout(MODEL, prefill(MODEL, [1, 2, 3]), None)
    assert layout is not None
    shapes, _ = layout
    return SlabStorage(
        MODEL,
        shapes,
        Plain(),
        budget_bytes=budget_bytes,
        cold_blocks=0,
        expected_rows=expected_rows,
    )


def add_rows(storage: SlabStorage, count: int, length: int = 10) -> list[Row]:
    rows = [row_of(prompt_of(length, seed)) for seed in range(count)]
    for row in rows:
        storage.add(row)
    return rows


def test_a_slab_has_a_few_slots_more_than_rows_where_the_budget_allows() -> None:
    storage = storage_of(100 * SLOT_BYTES)
    for count in range(1, 20):
        add_rows(storage, 1)
        assert count * SLOT_BYTES <= storage.allocated_bytes <= 1.5 * count * SLOT_BYTES


def test_slots_are_exact_where_the_budget_ends() -> None:
    storage = storage_of(7 * SLOT_BYTES)
    add_rows(storage, 5)
    add_rows(storage, 1, length=500)
    assert storage.allocated_bytes == 7 * SLOT_BYTES


def test_memory_of_rows_that_left_is_there_for_others() -> None:
    storage = storage_of(8 * SLOT_BYTES)
    rows = add_rows(storage, 8)
    assert storage.allocated_bytes == 8 * SLOT_BYTES
    for row in rows[:6]:
        storage.drop(row)
    add_rows(storage, 3, length=500)
    assert storage.allocated_bytes == 8 * SLOT_BYTES
    for row in rows[6:]:
        storage.drop(row)
    add_rows(storage, 1, length=500)
    assert storage.allocated_bytes == 8 * SLOT_BYTES


@pytest.mark.parametrize("slots", [3, 4, 5, 7])
def test_rows_grow_in_a_budget_that_just_holds_them(slots: int) -> None:
    storage = storage_of(slots * SLOT_BYTES)
    engine = Engine(storage, vocab_size=VOCAB_SIZE, eos_ids=frozenset())
    lengths = [254, *[30] * (slots - 2)]
    requests = [request(str(i), length, seed=i) for i, length in enumerate(lengths)]
    results = Driver(engine, requests, chunks=[120]).run()
    for i, length in enumerate(lengths):
        assert results[str(i)].ids == alone(length, seed=i)
    # The slot that a row has just left may still be there.
    assert storage.allocated_bytes <= (slots + 1) * SLOT_BYTES


def test_a_reset_gives_memory_back_at_once() -> None:
    storage = storage_of(10**9)
    gc.collect()
    before = mx.get_active_memory()
    rows = add_rows(storage, 20, length=1000)
    result = storage.run(rows[:3], mx.array([1, 2, 3], dtype=mx.uint32), [])
    mx.eval(result.logits, result.arrays)
    del result
    assert mx.get_active_memory() - before >= 20 * 4 * SLOT_BYTES
    storage.reset()
    assert storage.allocated_bytes == 0
    assert mx.get_active_memory() - before < SLOT_BYTES


def test_slots_for_expected_rows_exist_before_them() -> None:
    storage = storage_of(1000 * SLOT_BYTES, expected_rows=5)
    assert storage.allocated_bytes == 5 * SLOT_BYTES
    add_rows(storage, 5)
    assert storage.allocated_bytes == 5 * SLOT_BYTES
    storage.reset()
    assert storage.allocated_bytes == 5 * SLOT_BYTES


def test_slots_for_expected_rows_take_a_small_part_of_the_budget() -> None:
    assert storage_of(50 * SLOT_BYTES, expected_rows=32).allocated_bytes <= 5 * SLOT_BYTES
    assert storage_of(0, expected_rows=32).allocated_bytes == 0
