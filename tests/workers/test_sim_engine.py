"""The simulated engine: tokens that do not depend on what happened, times that do."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.config import SchedulerOptions
from mlxfleet.common.messages import Admit, Prefill, Sampling, Store
from mlxfleet.workers.sim_engine import CATCH_UP_S, SimEngine
from mlxfleet.workers.sim_faults import LOOK_S, Faults
from tests.workers.sim_driver import (
    EOS,
    OPTIONS,
    VOCAB_SIZE,
    Clock,
    Node,
    admit,
    engine_of,
    next_step,
)

PROMPT = list(range(10, 60))


def run_row(command: Admit, *, chunk: int = 1000) -> list[int]:
    """The tokens of a row that is alone and runs to its end, its prompt cut into chunks."""
    clock = Clock()
    return run_row_on(engine_of(clock=clock), clock, command, chunk)


def run_row_on(engine: SimEngine, clock: Clock, command: Admit, chunk: int = 1000) -> list[int]:
    engine.admit(command)
    left = len(command.token_ids) - 1
    while left > 0:
        engine.prefill(Prefill([command.rid], [chunk]))
        left -= chunk
    ids: list[int] = []
    while engine.busy:
        step = next_step(engine, clock)
        ids += step.ids
        if step.finish:
            assert step.finish == {0: "length"}
            engine.drop(command.rid)
    return ids


# --- tokens ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=80),
    cut=st.integers(0, 19),
    chunk=st.integers(1, 100),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_a_sequence_goes_on_anywhere_as_if_nothing_had_happened(
    prompt: list[int], cut: int, chunk: int, seed: int
) -> None:
    whole = run_row(admit(prompt, seed=seed))
    assert len(whole) == 20
    assert EOS not in whole
    assert whole[cut:] == run_row(admit(prompt, whole[:cut], seed=seed), chunk=chunk)


@settings(deadline=None, max_examples=30)
@given(
    prompts=st.lists(st.integers(1, 300), min_size=2, max_size=8),
    shared=st.integers(0, 200),
    kv_tokens=st.sampled_from([1024, 8192]),
    cache_tokens=st.sampled_from([0, 128, 4096]),
)
def test_tokens_depend_on_neither_neighbours_nor_caches(
    prompts: list[int], shared: int, kv_tokens: int, cache_tokens: int
) -> None:
    options = dataclasses.replace(OPTIONS, sim_kv_tokens=kv_tokens, sim_cache_tokens=cache_tokens)
    node = Node(options, SchedulerOptions(max_running=4))
    requests = {f"{i}": [7] * shared + [i] * length + [8] for i, length in enumerate(prompts)}
    for rid, prompt in requests.items():
        node.submit(rid, prompt, 20)
    node.run(*requests)
    for rid, prompt in requests.items():
        assert node.tokens[rid] == run_row(admit(prompt))


def test_a_block_that_holds_something_else_is_noticed() -> None:
    right = run_row(admit([1] * 33))
    assert run_with_cached_block([1] * 33) == right
    assert run_with_cached_block([9] * 33) != right


def run_with_cached_block(stored: list[int]) -> list[int]:
    """The tokens of [1] * 33 where another row has stored the block that they begin with."""
    clock = Clock()
    engine = engine_of(clock=clock)
    engine.admit(admit(stored, rid="other"))
    engine.prefill(Prefill(["other"], [32]))
    engine.step("")
    engine.store(Store("other", 0, [5]))
    engine.drop("other")
    next_step(engine, clock)
    return run_row_on(engine, clock, admit_cached([1] * 33, [5]))


def admit_cached(token_ids: list[int], blocks: list[int]) -> Admit:
    return Admit(
        rid="a",
        token_ids=token_ids,
        n_output=0,
        sampling=Sampling(seed=1, max_tokens=20),
        cached_tokens=32,
        cached_blocks=blocks,
    )


def test_log_probabilities_come_when_they_are_asked_for() -> None:
    clock = Clock()
    engine = engine_of(clock=clock)
    sampling = Sampling(seed=1, max_tokens=2, logprobs=3)
    engine.admit(Admit(rid="a", token_ids=[1], n_output=0, sampling=sampling))
    engine.step("")
    step = next_step(engine, clock)
    assert step.logprobs[0].top_ids[0] == step.ids[0]
    assert len(step.logprobs[0].top_logprobs) == 3
    assert step.logprobs[0].logprob == pytest.approx(-math.log(VOCAB_SIZE - 1))


# --- times ----------------------------------------------------------------------------------------


def test_a_pass_takes_what_the_options_say() -> None:
    clock = Clock()
    engine = engine_of(clock=clock)
    for rid in "abc":
        engine.admit(admit([1], rid=rid))
    engine.admit(admit(PROMPT, rid="d"))
    engine.prefill(Prefill(["d"], [20]))
    engine.step("")
    assert engine.due_s() == pytest.approx(0.010 + 3 * 0.001 + 20 / 1000)
    step = next_step(engine, clock)
    assert step.pass_s == pytest.approx(0.033)
    assert step.rids == ["a", "b", "c"]
    assert step.prefilled == [("d", 20)]
    assert step.decoded_rows == 3


def test_nothing_comes_before_the_pass_is_over() -> None:
    clock = Clock()
    engine = engine_of(clock=clock)
    engine.admit(admit([1]))
    engine.step("")
    clock.now += 0.0109
    assert engine.due_s() > 0
    assert engine.step("").ids == []
    clock.now += 0.0002
    assert engine.due_s() == 0
    assert len(engine.step("").ids) == 1


def test_passes_follow_each_other_and_a_late_host_costs_nothing() -> None:
    clock = Clock()
    engine = engine_of(clock=clock)
    engine.admit(admit([1], max_tokens=50))
    engine.step("")
    passes = 0
    while engine.busy:
        clock.now += engine.due_s() + 0.002
        passes += len(engine.step("").ids)
    assert passes == 50
    assert clock.now == pytest.approx(50 * 0.011, abs=0.005)


def test_what_a_stopped_process_missed_is_not_made_up_for() -> None:
    clock = Clock()
    engine = engine_of(clock=clock)
    engine.admit(admit([1], max_tokens=1000))
    engine.step("")
    clock.now += 100.0
    made = 0
    while engine.due_s() == 0:
        made += len(engine.step("").ids)
    assert made == 1 + int(CATCH_UP_S / 0.011)


def test_waiting_with_rows_is_idle_and_waiting_without_is_not() -> None:
    clock = Clock(5.0)
    engine = engine_of(clock=clock)
    engine.admit(admit(PROMPT))
    engine.prefill(Prefill(["a"], [10]))
    engine.step("")
    assert next_step(engine, clock).idle_s == 0
    assert engine.due_s() == math.inf
    clock.now += 3.0
    engine.prefill(Prefill(["a"], [10]))
    engine.step("")
    assert next_step(engine, clock).idle_s == pytest.approx(3.0)
    engine.drop("a")
    engine.admit(admit([1], rid="b", max_tokens=1))
    engine.step("")
    assert next_step(engine, clock).ids
    clock.now += 3.0
    engine.admit(admit([1], rid="c", max_tokens=1))
    engine.step("")
    assert next_step(engine, clock).idle_s == 0


def test_it_slows_down_with_time() -> None:
    clock = Clock(1000.0)
    options = dataclasses.replace(OPTIONS, sim_slowdown="0:1,10:3")
    engine = engine_of(options, clock)
    assert_pass_s(engine, clock, 0.011)
    clock.now = 1005.0
    assert_pass_s(engine, clock, 0.022)
    clock.now = 2000.0
    assert_pass_s(engine, clock, 0.033)


def assert_pass_s(engine: SimEngine, clock: Clock, seconds: float) -> None:
    engine.admit(admit([1], max_tokens=1))
    engine.step("")
    assert next_step(engine, clock).pass_s == pytest.approx(seconds)


def test_gone_rows_are_reported_without_a_pass() -> None:
    engine = engine_of()
    engine.prefill(Prefill(["nobody", "a"], [10, 10]))
    step = engine.step("")
    assert step.prefilled == [("nobody", 0), ("a", 0)]
    assert step.pass_s == 0
    assert not engine.busy


def test_a_stored_prefix_saves_its_prefill() -> None:
    node = Node()
    prompt = [7] * 2000
    node.submit("first", [*prompt, 1], 4)
    node.run("first")
    began = node.clock.now
    node.submit("second", [*prompt, 2], 4)
    node.run("second")
    assert node.first_s["first"] > 2.0
    assert node.first_s["second"] - began < 0.1
    assert node.scheduler.cached_tokens == 2000
    assert node.tokens["second"] == run_row(admit([*prompt, 2], max_tokens=4))


def test_memory_is_what_rows_and_prefixes_would_take() -> None:
    engine = engine_of()
    assert engine.memory_bytes == 0
    run = admit([1] * 300)
    engine.admit(run)
    assert engine.memory_bytes == 512
    engine.prefill(Prefill(["a"], [299]))
    engine.step("")
    engine.store(Store("a", 0, [0, 1]))
    engine.drop("a")
    assert engine.memory_bytes == 64
    engine.close()
    assert engine.memory_bytes == 0


# --- faults ---------------------------------------------------------------------------------------


def test_a_hung_engine_stands_still_and_then_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "faults"
    engine = engine_of(clock=clock, faults=Faults(file, "node-0"))
    engine.admit(admit([1]))
    engine.step("")
    file.write_text("node-0 hang\n")
    for _ in range(100):
        clock.now += LOOK_S
        assert 0 < engine.due_s() <= 1.001 * LOOK_S
        assert engine.step("").ids == []
    file.unlink()
    clock.now += LOOK_S
    assert engine.due_s() == 0
    assert engine.step("").ids == run_row(admit([1]))[:1]


def test_a_slow_engine_is_slow_from_its_next_pass_on(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "faults"
    engine = engine_of(clock=clock, faults=Faults(file, "node-0"))
    engine.admit(admit([1]))
    engine.step("")
    file.write_text("node-0 slow 3\n")
    clock.now += LOOK_S
    assert engine.due_s() == 0
    assert engine.step("").pass_s == pytest.approx(0.011)
    while not (step := next_step(engine, clock)).ids:
        pass
    assert step.pass_s == pytest.approx(0.033)
