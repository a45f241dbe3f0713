"""The scheduler's decisions, and that they hold together whatever happens in which order."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxfleet.common import channels
from mlxfleet.common.config import SchedulerOptions, SchedulerProcess
from mlxfleet.common.messages import (
    Admit,
    Admitted,
    Drop,
    Finish,
    FinishReason,
    Generate,
    KvEvents,
    ModelInfo,
    NodeStatus,
    NodeToRouter,
    PassTime,
    Prefill,
    Rejected,
    Release,
    Resend,
    Sampling,
    SchedulerToWorker,
    Step,
    Store,
    TokenLogprobs,
    Tokens,
    WorkerStatus,
)
from mlxfleet.workers import prefix_tree
from mlxfleet.workers import scheduler as scheduler_module
from mlxfleet.workers.scheduler import (
    HELD_SHARE,
    MAX_HELD_S,
    PASSES_AHEAD,
    TOKENS_AHEAD,
    Scheduler,
)
from mlxfleet.workers.scheduler_main import SchedulerService
from tests.workers.attempts import ATTEMPT, knows, release, row_of, without_number

MODEL = ModelInfo(
    vocab_size=100,
    context_length=200,
    eos_ids=[0],
    kv_budget_bytes=1000,
    fixed_bytes=0,
    bytes_per_token=1,
    windowed=[],
    weights_bytes=0,
)
DEADLINE_S = 5.0


def generate(
    rid: str,
    prompt_tokens: int = 5,
    *,
    max_tokens: int = 10,
    output_ids: Iterable[int] = (),
    detokenizer: str = "d0",
    attempt: str = ATTEMPT,
) -> Generate:
    """A request with prompt ids 1, 2, 3, ..."""
    return Generate(
        rid=rid,
        attempt=attempt,
        detokenizer=detokenizer,
        prompt_ids=list(range(1, prompt_tokens + 1)),
        output_ids=list(output_ids),
        sampling=Sampling(seed=1, max_tokens=max_tokens),
    )


def make_scheduler(*, model: ModelInfo | None = MODEL, **options: Any) -> Scheduler:
    """A scheduler whose worker is ready; chunks have 8 tokens as long as no step is timed."""
    scheduler = Scheduler(SchedulerOptions(**{"max_chunk_tokens": 8, **options}))
    if model is not None:
        assert scheduler.worker_ready(model) == []
    return scheduler


def test_the_speed_is_known_from_the_passes_that_were_timed_at_load() -> None:
    """Otherwise a node that has run nothing looks slow, and gets nothing to run."""
    fixed_s, row_s, token_s = 0.015, 0.0005, 0.0005
    sizes = ((1, 0), (8, 0), (0, 16), (0, 64), (0, 128))
    passes = [PassTime(r, t, fixed_s + r * row_s + t * token_s) for r, t in sizes]
    model = msgspec.structs.replace(MODEL, passes=passes)
    scheduler = make_scheduler(model=model, max_chunk_tokens=512)
    assert 1 / (2 * token_s) < scheduler.prefill_tokens_per_s < 1 / token_s
    assert scheduler.decode_step_s == pytest.approx(fixed_s + row_s, rel=0.05)


def submit(scheduler: Scheduler, *rids: str, **request: Any) -> None:
    """Queue requests that are taken."""
    for rid in rids:
        assert scheduler.submit(generate(rid, **request)) is None


def make_step(
    tokens: dict[str, int] | None = None,
    *,
    finish: dict[str, FinishReason] | None = None,
    prefilled: Iterable[tuple[str, int]] = (),
    logprobs: dict[str, TokenLogprobs] | None = None,
) -> Step:
    """What the worker did: a token per sequence, some of them the last."""
    rids = list(tokens or {})
    return Step(
        epoch="",
        rids=rids,
        ids=list((tokens or {}).values()),
        finish={rids.index(rid): reason for rid, reason in (finish or {}).items()},
        logprobs={rids.index(rid): entry for rid, entry in (logprobs or {}).items()},
        prefilled=list(prefilled),
    )


def again(rid: str, detokenizer: str, start: int) -> Resend:
    """Ask for tokens of a first attempt."""
    return Resend(rid, ATTEMPT, detokenizer, start)


def tokens_of(rids: list[str], *columns: Any) -> Tokens:
    """Tokens of first attempts."""
    return Tokens(rids, [ATTEMPT] * len(rids), *columns)


def run_step(
    scheduler: Scheduler,
    tokens: dict[str, int] | None = None,
    *,
    prefilled: Iterable[tuple[str, int]] = (),
    finish: dict[str, FinishReason] | None = None,
    logprobs: dict[str, TokenLogprobs] | None = None,
) -> dict[str, Tokens]:
    """Take in a step of the rows that sequences have now; its messages by detokenizer."""

    def rows(column: dict[str, Any] | None) -> dict[str, Any]:
        return {row_of(scheduler, rid): value for rid, value in (column or {}).items()}

    step = make_step(
        rows(tokens),
        finish=rows(finish),
        logprobs=rows(logprobs),
        prefilled=[(row_of(scheduler, rid), count) for rid, count in prefilled],
    )
    sent = list(scheduler.on_step(step))
    by_name = dict(sent)
    assert len(by_name) == len(sent)
    return by_name


def admitted(commands: Iterable[SchedulerToWorker]) -> list[str]:
    """Who was admitted, in order."""
    return [without_number(c.rid) for c in commands if isinstance(c, Admit)]


def passes(commands: Iterable[SchedulerToWorker]) -> list[list[tuple[str, int]]]:
    """The prompt tokens of each pass that was sent, in order."""
    sent = [command for command in commands if isinstance(command, Prefill)]
    return [
        list(zip(map(without_number, prefill.rids), prefill.tokens, strict=True))
        for prefill in sent
    ]


def prefills(commands: Iterable[SchedulerToWorker]) -> list[tuple[str, int]]:
    """Which chunks were sent, in order."""
    return [chunk for chunks in passes(commands) for chunk in chunks]


def dropped(commands: Iterable[SchedulerToWorker]) -> list[str]:
    """Who was dropped, in order."""
    return [without_number(c.rid) for c in commands if isinstance(c, Drop)]


# --- load -----------------------------------------------------------------------------------------


def test_prompt_tokens_that_are_to_be_computed_are_counted() -> None:
    scheduler = make_scheduler(max_running=1)
    submit(scheduler, "a", "b", prompt_tokens=21)
    assert (scheduler.received, scheduler.queued_prefill_tokens) == (2, 40)
    scheduler.schedule()
    assert (scheduler.queued_prefill_tokens, scheduler.running_prefill_tokens) == (20, 20)
    run_step(scheduler, prefilled=[("a", 8)])
    assert scheduler.running_prefill_tokens == 12
    run_step(scheduler, prefilled=[("a", 12)])
    assert scheduler.running_prefill_tokens == 0
    release(scheduler, "a")
    release(scheduler, "b")
    assert (scheduler.queued_prefill_tokens, scheduler.running_prefill_tokens) == (0, 0)


def test_what_is_cached_or_being_computed_is_not_expected_to_be_computed_again() -> None:
    model = msgspec.structs.replace(MODEL, cold_blocks=8)
    scheduler = make_scheduler(model=model, max_running=1)
    submit(scheduler, "a", prompt_tokens=70)
    scheduler.schedule()
    submit(scheduler, "b", prompt_tokens=80)
    assert scheduler.queued_prefill_tokens == 79 - 2 * prefix_tree.BLOCK_TOKENS


def test_requests_that_are_refused_are_received_too() -> None:
    scheduler = make_scheduler(max_running=1, max_queue=1)
    submit(scheduler, "a", "b")
    assert scheduler.submit(generate("c")) is not None
    assert scheduler.received == 3


def test_a_new_worker_clears_the_cache() -> None:
    scheduler = make_scheduler()
    scheduler.journal.stored(1)
    list(scheduler.journal.take(scheduler.cached_blocks))
    scheduler.worker_ready(MODEL)
    (events,) = scheduler.journal.take(scheduler.cached_blocks)
    assert isinstance(events, KvEvents)
    assert events.cleared


def test_how_long_sequences_run_is_measured_in_the_workers_time() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    step = make_step({"a#1": 7}, finish={"a#1": "stop"})
    step.pass_s, step.idle_s = 2.0, 1.0
    list(scheduler.on_step(step))
    assert scheduler.sequence_s == 3.0


# --- admission ------------------------------------------------------------------------------------


def test_nothing_is_scheduled_before_a_worker_is_there() -> None:
    scheduler = make_scheduler(model=None)
    submit(scheduler, "a")
    assert scheduler.schedule() == []
    assert scheduler.queued == 1


def test_requests_are_admitted_in_order() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "c", "a", "b")
    assert admitted(scheduler.schedule()) == ["c", "a", "b"]


def test_an_admission_carries_the_whole_request() -> None:
    scheduler = make_scheduler()
    scheduler.submit(generate("a", 3, max_tokens=7, output_ids=[50, 51]))
    assert scheduler.schedule()[0] == Admit(
        rid="a#1",
        token_ids=[1, 2, 3, 50, 51],
        n_output=2,
        sampling=Sampling(seed=1, max_tokens=7),
    )


def test_no_more_run_than_max_running() -> None:
    scheduler = make_scheduler(max_running=2)
    submit(scheduler, "a", "b", "c")
    assert admitted(scheduler.schedule()) == ["a", "b"]
    assert (scheduler.running, scheduler.queued) == (2, 1)


def test_the_end_of_one_admits_the_next() -> None:
    scheduler = make_scheduler(max_running=1)
    submit(scheduler, "a", "b")
    scheduler.schedule()
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert admitted(scheduler.schedule()) == ["b"]


def test_a_request_waits_until_its_worst_case_fits_the_kv_budget() -> None:
    scheduler = make_scheduler(model=msgspec.structs.replace(MODEL, kv_budget_bytes=30))
    submit(scheduler, "a", "b", "c")
    assert admitted(scheduler.schedule()) == ["a", "b"]
    assert scheduler.kv_used_bytes == 30


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    scheduler = make_scheduler(model=msgspec.structs.replace(MODEL, kv_budget_bytes=40))
    submit(scheduler, "a")
    submit(scheduler, "large", prompt_tokens=30)
    submit(scheduler, "small", prompt_tokens=1)
    assert admitted(scheduler.schedule()) == ["a"]


def test_kv_bytes_count_windows_and_fixed_state() -> None:
    model = msgspec.structs.replace(MODEL, fixed_bytes=100, windowed=[(6, 10)])
    scheduler = make_scheduler(model=model)
    submit(scheduler, "a")
    scheduler.schedule()
    assert scheduler.kv_used_bytes == 100 + 15 * 1 + 6 * 10


def test_a_full_queue_refuses() -> None:
    scheduler = make_scheduler(max_running=1, max_queue=2)
    submit(scheduler, "running")
    scheduler.schedule()
    submit(scheduler, "a", "b")
    refusal = scheduler.submit(generate("c"))
    assert isinstance(refusal, Rejected)
    assert (refusal.rid, refusal.code) == ("c", "queue_full")
    assert scheduler.queued == 2
    assert not knows(scheduler, "c")


def test_a_restarted_scheduler_takes_back_all_that_ran_and_waited() -> None:
    scheduler = make_scheduler(model=None, max_running=2, max_queue=2)
    refusals = [scheduler.submit(generate(rid, output_ids=[5])) for rid in "abcd"]
    assert refusals == [None] * 4


def test_a_request_beyond_the_context_is_refused_with_numbers() -> None:
    scheduler = make_scheduler()
    refusal = scheduler.submit(generate("a", 150, max_tokens=51))
    assert isinstance(refusal, Rejected)
    assert refusal.code == "too_long"
    assert "201" in refusal.message
    assert "200" in refusal.message


def test_a_request_as_long_as_the_context_is_taken() -> None:
    submit(make_scheduler(), "a", prompt_tokens=150, max_tokens=50)


def test_a_request_beyond_the_kv_budget_is_refused_with_numbers() -> None:
    model = msgspec.structs.replace(MODEL, bytes_per_token=1_000_000, kv_budget_bytes=14_000_000)
    refusal = make_scheduler(model=model).submit(generate("a"))
    assert isinstance(refusal, Rejected)
    assert refusal.code == "too_long"
    assert all(number in refusal.message for number in ("15 tokens", "15 MB", "14 MB"))


def test_what_waited_for_the_first_worker_is_checked_when_it_comes() -> None:
    scheduler = make_scheduler(model=None)
    submit(scheduler, "long", prompt_tokens=300)
    submit(scheduler, "a")
    assert [(r.rid, r.code) for r in scheduler.worker_ready(MODEL)] == [("long", "too_long")]
    assert admitted(scheduler.schedule()) == ["a"]


def test_a_request_that_is_known_is_left_alone() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "a")
    assert scheduler.queued == 1
    scheduler.schedule()
    submit(scheduler, "a")
    assert (scheduler.running, scheduler.queued) == (1, 0)


# --- prefill --------------------------------------------------------------------------------------


def test_all_but_the_last_prompt_token_is_prefilled_in_chunks() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=13)
    assert prefills(scheduler.schedule()) == [("a", 8), ("a", 4)]


def test_only_a_few_chunks_are_ahead_of_the_worker() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=41)
    assert len(prefills(scheduler.schedule())) == PASSES_AHEAD
    assert prefills(scheduler.schedule()) == []


def test_a_chunk_that_is_reported_makes_room_for_the_next() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=41)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("a", 8)])
    assert prefills(scheduler.schedule()) == [("a", 8)]


def test_a_chunk_of_a_dropped_row_makes_room_too() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", prompt_tokens=41)
    scheduler.schedule()
    release(scheduler, "a")
    scheduler.schedule()
    for _ in range(PASSES_AHEAD):
        run_step(scheduler, prefilled=[("a", 0)])
    assert prefills(scheduler.schedule()) == [("b", 8)] * PASSES_AHEAD


def test_the_oldest_is_prefilled_first_and_others_fill_its_last_pass() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", prompt_tokens=13)
    assert passes(scheduler.schedule()) == [[("a", 8)], [("a", 4), ("b", 4)], [("b", 8)]]
    run_step(scheduler, prefilled=[("a", 8)])
    run_step(scheduler, prefilled=[("a", 4), ("b", 4)])
    assert passes(scheduler.schedule()) == []


def test_a_short_prompt_is_done_beside_a_long_one() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "long", prompt_tokens=41)
    submit(scheduler, "short", prompt_tokens=4)
    assert passes(scheduler.schedule()) == [
        [("long", 5), ("short", 3)],
        *[[("long", 8)]] * (PASSES_AHEAD - 1),
    ]


def test_two_passes_that_are_reported_at_once_make_room_for_two() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", prompt_tokens=41)
    scheduler.schedule()
    release(scheduler, "a")
    run_step(scheduler, prefilled=[("a", 8), ("a", 0)])
    assert prefills(scheduler.schedule()) == [("b", 8)] * 2


def test_a_pass_of_two_prompts_makes_room_for_one() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "long", prompt_tokens=100)
    submit(scheduler, "short", prompt_tokens=4)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("long", 5), ("short", 3)])
    assert passes(scheduler.schedule()) == [[("long", 8)]]


def test_the_pass_of_the_last_chunk_may_give_the_first_token() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=5)
    scheduler.schedule()
    tokens = run_step(scheduler, {"a": 7}, prefilled=[("a", 4)])["d0"]
    assert (tokens.starts, tokens.ids) == ([0], [[7]])


def test_a_one_token_prompt_needs_no_prefill() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    commands = scheduler.schedule()
    assert admitted(commands) == ["a"]
    assert prefills(commands) == []
    assert run_step(scheduler, {"a": 7})["d0"].ids == [[7]]


def test_output_is_not_prefilled() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=2)
    assert prefills(scheduler.schedule()) == [("a", 1)]
    run_step(scheduler, prefilled=[("a", 1)])
    run_step(scheduler, {"a": 7})
    assert scheduler.schedule() == []


def test_chunks_shrink_while_others_decode() -> None:
    model = msgspec.structs.replace(MODEL, context_length=4000, kv_budget_bytes=10**9)
    scheduler = make_scheduler(model=model, max_chunk_tokens=512)
    submit(scheduler, "a", prompt_tokens=3001)
    scheduler.schedule()
    for tokens, seconds in [(32, 0.042), (32, 0.042), (128, 0.138)]:
        step = make_step(prefilled=[(row_of(scheduler, "a"), tokens)])
        step.pass_s = seconds
        list(scheduler.on_step(step))
    ((_, idle),) = prefills(scheduler.schedule())[:1]
    submit(scheduler, "decoding", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, {"decoding": 7}, prefilled=[("a", idle)])
    ((_, beside),) = prefills(scheduler.schedule())[:1]
    assert 0 < beside < idle


def held_scheduler(clock: Callable[[], float], *, token_s: float) -> Scheduler:
    """One that knows what passes take."""
    passes = [PassTime(0, tokens, tokens * token_s) for tokens in (16, 64, 128)]
    model = msgspec.structs.replace(MODEL, passes=passes)
    scheduler = Scheduler(SchedulerOptions(max_chunk_tokens=512), now=clock)
    assert scheduler.worker_ready(model) == []
    return scheduler


def test_prompts_that_come_together_share_the_first_pass() -> None:
    now = 0.0
    scheduler = held_scheduler(lambda: now, token_s=0.001)
    submit(scheduler, "a", prompt_tokens=101)
    assert prefills(scheduler.schedule()) == []
    assert scheduler.held_s == pytest.approx(HELD_SHARE * 0.1, rel=0.05)
    now += 0.9 * scheduler.held_s
    submit(scheduler, "b", prompt_tokens=101)
    assert prefills(scheduler.schedule()) == []
    now += 1.01 * scheduler.held_s
    assert prefills(scheduler.schedule()) == [("a", 100), ("b", 100)]
    assert scheduler.held_s == 0


def test_a_pass_is_not_held_for_longer_than_it_is_worth() -> None:
    fast = held_scheduler(lambda: 0.0, token_s=1e-5)
    submit(fast, "a", prompt_tokens=101)
    assert prefills(fast.schedule()) == [("a", 100)]
    slow = held_scheduler(lambda: 0.0, token_s=0.02)
    submit(slow, "a", prompt_tokens=41)
    assert (prefills(slow.schedule()), slow.held_s) == ([], MAX_HELD_S)
    submit(slow, "b", prompt_tokens=101)
    assert sum(tokens for _, tokens in prefills(slow.schedule())) > 0, "a whole pass is there"


def test_nothing_is_held_beside_a_stream() -> None:
    scheduler = held_scheduler(lambda: 0.0, token_s=0.001)
    submit(scheduler, "stream", prompt_tokens=1)
    scheduler.schedule()
    submit(scheduler, "a", prompt_tokens=101)
    assert prefills(scheduler.schedule()) != []


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_carry_their_position_in_the_output() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    submit(scheduler, "moved", prompt_tokens=1, output_ids=[50, 51])
    scheduler.schedule()
    run_step(scheduler, {"a": 7})
    tokens = run_step(scheduler, {"a": 8, "moved": 9})["d0"]
    assert tokens == tokens_of(["a", "moved"], [1, 2], [[8], [9]], {}, {})


def test_every_detokenizer_gets_one_message_a_step() -> None:
    scheduler = make_scheduler()
    for rid, name in [("a", "d0"), ("b", "d1"), ("c", "d0")]:
        submit(scheduler, rid, prompt_tokens=1, detokenizer=name)
    scheduler.schedule()
    sent = run_step(scheduler, {"a": 7, "b": 8, "c": 9}, finish={"c": "length"})
    assert sent == {
        "d0": tokens_of(["a", "c"], [0, 0], [[7], [9]], {1: Finish("length")}, {}),
        "d1": tokens_of(["b"], [0], [[8]], {}, {}),
    }


def test_log_probabilities_follow_their_token() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", prompt_tokens=1)
    scheduler.schedule()
    entry = TokenLogprobs(-0.5, [9, 3], [-0.5, -2.0])
    tokens = run_step(scheduler, {"a": 7, "b": 9}, logprobs={"b": entry})["d0"]
    assert tokens.logprobs == {1: [entry]}


def test_tokens_of_a_released_sequence_go_nowhere() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    release(scheduler, "a")
    assert run_step(scheduler, {"a": 7}) == {}


def test_a_finished_sequence_takes_no_more_tokens() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert run_step(scheduler, {"a": 8}) == {}


def test_a_finish_frees_its_kv_bytes() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b")
    scheduler.schedule()
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert scheduler.kv_used_bytes == 15
    assert scheduler.running == 1


def test_only_so_many_finished_sequences_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_FINISHED_KEPT", 2)
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", "c", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, dict.fromkeys("abc", 7), finish=dict.fromkeys("abc", "stop"))
    assert [knows(scheduler, rid) for rid in "abc"] == [False, True, True]


# --- release --------------------------------------------------------------------------------------


def test_releasing_a_waiting_sequence_tells_the_worker_nothing() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a")
    release(scheduler, "a")
    assert scheduler.schedule() == []
    assert scheduler.queued == 0


def test_releasing_while_prefilling_drops_and_frees() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=100)
    scheduler.schedule()
    release(scheduler, "a")
    assert (scheduler.running, scheduler.kv_used_bytes) == (0, 0)
    assert dropped(scheduler.schedule()) == ["a"]


def test_releasing_while_decoding_drops_and_frees() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, {"a": 7})
    release(scheduler, "a")
    assert (scheduler.running, scheduler.kv_used_bytes) == (0, 0)
    assert dropped(scheduler.schedule()) == ["a"]
    assert scheduler.schedule() == []


def test_releasing_a_finished_sequence_tells_the_worker_nothing() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert dropped(scheduler.schedule()) == ["a"]
    release(scheduler, "a")
    assert scheduler.schedule() == []
    assert not knows(scheduler, "a")


def test_releasing_twice_or_something_unknown_does_nothing() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a")
    scheduler.schedule()
    for rid in ("a", "a", "never there"):
        release(scheduler, rid)
    assert dropped(scheduler.schedule()) == ["a"]
    assert scheduler.kv_used_bytes == 0


def test_drops_come_before_admissions() -> None:
    scheduler = make_scheduler(max_running=1)
    submit(scheduler, "a", "b")
    scheduler.schedule()
    release(scheduler, "a")
    assert scheduler.schedule()[0] == Drop("a#1")


def test_everything_is_released_when_the_router_is_gone() -> None:
    scheduler = make_scheduler(max_running=2)
    submit(scheduler, "finished", "running", "waiting", prompt_tokens=1)
    scheduler.schedule()
    run_step(scheduler, {"finished": 7}, finish={"finished": "stop"})
    scheduler.release_all()
    assert (scheduler.running, scheduler.queued, scheduler.kv_used_bytes) == (0, 0, 0)
    assert dropped(scheduler.schedule()) == ["finished", "running"]


# --- attempts -------------------------------------------------------------------------------------


def test_an_equal_attempt_is_left_alone_and_a_newer_one_replaces_it() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "a", prompt_tokens=1)
    scheduler.schedule()
    submit(scheduler, "a", prompt_tokens=1, attempt="second", output_ids=[50])
    assert (scheduler.running, scheduler.queued) == (0, 1)
    drop, admit, _ = scheduler.schedule()
    assert drop == Drop("a#1")
    assert (admit.rid, admit.token_ids) == ("a#2", [1, 50])


def test_a_step_of_an_earlier_attempt_brings_no_token() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    submit(scheduler, "a", prompt_tokens=1, attempt="second")
    scheduler.schedule()
    assert run_step(scheduler, {"a#1": 7}) == {}
    assert run_step(scheduler, {"a": 8})["d0"] == Tokens(["a"], ["second"], [0], [[8]], {}, {})


def test_a_row_is_named_once_also_after_everything_was_released() -> None:
    """A step for the row from before the connection was lost is still under way."""
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    scheduler.release_all()
    submit(scheduler, "a", prompt_tokens=1, attempt="second")
    scheduler.schedule()
    assert run_step(scheduler, {"a#1": 7}, finish={"a#1": "stop"}) == {}
    assert scheduler.running == 1


def test_stale_messages_change_nothing() -> None:
    scheduler = decoded(7)
    scheduler.release(Release("a", "stale"))
    assert scheduler.running == 1
    refusal = scheduler.resend(Resend("a", "stale", "d1", 0))
    assert isinstance(refusal, Rejected)
    assert (refusal.attempt, refusal.code) == ("stale", "unknown")
    assert set(run_step(scheduler, {"a": 8})) == {"d0"}


def test_a_request_that_comes_with_all_its_tokens_only_gets_its_finish() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", max_tokens=2, output_ids=[50, 51])
    assert scheduler.schedule() == []
    assert (scheduler.running, scheduler.queued) == (0, 0)
    assert scheduler.resend(again("a", "d0", 2)) == (
        "d0",
        tokens_of(["a"], [2], [[]], {0: Finish("length")}, {}),
    )


# --- resend ---------------------------------------------------------------------------------------


def decoded(*tokens: int, finish: FinishReason | None = None, **request: Any) -> Scheduler:
    """A scheduler with a sequence `a` that has generated some tokens."""
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, **request)
    scheduler.schedule()
    for token in tokens[:-1]:
        run_step(scheduler, {"a": token})
    run_step(scheduler, {"a": tokens[-1]}, finish={"a": finish} if finish else {})
    return scheduler


def test_tokens_are_sent_again_from_a_position() -> None:
    assert decoded(7, 8, 9).resend(again("a", "d0", 1)) == (
        "d0",
        tokens_of(["a"], [1], [[8, 9]], {}, {}),
    )


def test_tokens_are_sent_again_after_the_finish() -> None:
    assert decoded(7, 8, finish="length").resend(again("a", "d0", 0)) == (
        "d0",
        tokens_of(["a"], [0], [[7, 8]], {0: Finish("length")}, {}),
    )


def test_a_finish_is_sent_again_without_tokens() -> None:
    assert decoded(7, 8, finish="stop").resend(again("a", "d0", 2)) == (
        "d0",
        tokens_of(["a"], [2], [[]], {0: Finish("stop")}, {}),
    )


def test_nothing_is_sent_again_if_nothing_is_missing() -> None:
    assert decoded(7, 8).resend(again("a", "d0", 2)) is None


def test_a_resend_moves_the_sequence_to_another_detokenizer() -> None:
    scheduler = decoded(7)
    scheduler.resend(again("a", "d1", 1))
    assert run_step(scheduler, {"a": 8}) == {"d1": tokens_of(["a"], [1], [[8]], {}, {})}


def test_a_resend_of_something_unknown_is_refused() -> None:
    refusal = make_scheduler().resend(again("a", "d0", 0))
    assert isinstance(refusal, Rejected)
    assert refusal.code == "unknown"


def with_logprobs(scheduler: Scheduler, *tokens: int) -> None:
    """Tokens of `a` whose log-probability is minus their id."""
    for token in tokens:
        run_step(scheduler, {"a": token}, logprobs={"a": TokenLogprobs(-token, [], [])})


def test_log_probabilities_are_sent_again() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1)
    scheduler.schedule()
    with_logprobs(scheduler, 7, 8, 9)
    _, tokens = scheduler.resend(again("a", "d0", 1))
    assert [entry.logprob for entry in tokens.logprobs[0]] == [-8, -9]


def test_log_probabilities_of_a_moved_sequence_are_sent_again() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, output_ids=[50, 51])
    scheduler.schedule()
    with_logprobs(scheduler, 7, 8)
    _, tokens = scheduler.resend(again("a", "d0", 2))
    assert [entry.logprob for entry in tokens.logprobs[0]] == [-7, -8]


def test_a_resend_from_before_a_move_does_not_kill_the_scheduler() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, output_ids=[50, 51])
    scheduler.schedule()
    with_logprobs(scheduler, 7)
    _, tokens = scheduler.resend(again("a", "d0", 0))
    assert tokens.ids == [[50, 51, 7]]


def test_everything_is_sent_again_over_a_link_that_was_lost() -> None:
    scheduler = decoded(7)
    assert scheduler.resends_for("d0") == [again("a", "d0", 0)]
    assert scheduler.resends_for("d1") == []


def test_tokens_from_elsewhere_are_not_sent_again_without_their_log_probabilities() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, output_ids=[50, 51])
    scheduler.schedule()
    with_logprobs(scheduler, 7, 8)
    (resend,) = scheduler.resends_for("d0")
    assert resend.start == 2
    _, tokens = scheduler.resend(resend)
    assert [entry.logprob for entry in tokens.logprobs[0]] == [-7, -8]


# --- memory ---------------------------------------------------------------------------------------


def budget(tokens: int, **model: Any) -> ModelInfo:
    """A model with memory for so many tokens."""
    return msgspec.structs.replace(MODEL, kv_budget_bytes=tokens, **model)


def decode(scheduler: Scheduler, rid: str, tokens: int) -> list[SchedulerToWorker]:
    """Decode some tokens of one sequence; what was sent to the worker meanwhile."""
    commands = []
    for _ in range(tokens):
        run_step(scheduler, {rid: 7})
        commands += scheduler.schedule()
    return commands


def crowded() -> Scheduler:
    """A scheduler whose memory is full with `old` and `young`, at one token each."""
    scheduler = make_scheduler(model=budget(150))
    submit(scheduler, "old", "young", prompt_tokens=1, max_tokens=120)
    assert admitted(scheduler.schedule()) == ["old", "young"]
    return scheduler


def preempted() -> Scheduler:
    """A scheduler that has preempted `young`, which had two tokens, for `old`."""
    scheduler = crowded()
    run_step(scheduler, {"young": 8})
    run_step(scheduler, {"young": 9})
    assert dropped(decode(scheduler, "old", TOKENS_AHEAD // 2 + 1)) == ["young"]
    return scheduler


def test_memory_is_reserved_a_little_ahead_and_not_for_the_worst_case() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=5, max_tokens=190)
    scheduler.schedule()
    assert scheduler.kv_used_bytes == 5 + TOKENS_AHEAD


def test_more_memory_is_reserved_when_half_of_what_is_ahead_is_used() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, max_tokens=190)
    scheduler.schedule()
    decode(scheduler, "a", TOKENS_AHEAD // 2)
    assert scheduler.kv_used_bytes == 1 + TOKENS_AHEAD
    decode(scheduler, "a", 1)
    assert scheduler.kv_used_bytes == 2 + TOKENS_AHEAD // 2 + TOKENS_AHEAD


def test_no_more_is_reserved_than_the_worst_case() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=1, max_tokens=100)
    scheduler.schedule()
    decode(scheduler, "a", 99)
    assert scheduler.kv_used_bytes == 101


def test_in_slabs_memory_is_reserved_in_slots() -> None:
    model = budget(2000, context_length=1000, in_slabs=True)
    scheduler = make_scheduler(model=model)
    submit(scheduler, "a", prompt_tokens=5)
    submit(scheduler, "b", prompt_tokens=250)
    scheduler.schedule()
    assert scheduler.kv_used_bytes == 256 + 512


def test_the_last_to_come_makes_room() -> None:
    scheduler = preempted()
    assert (scheduler.running, scheduler.queued, scheduler.preemptions) == (1, 1, 1)


def test_one_that_needs_memory_and_came_last_makes_room_itself() -> None:
    scheduler = crowded()
    assert dropped(decode(scheduler, "young", TOKENS_AHEAD // 2 + 1)) == ["young"]
    assert scheduler.kv_used_bytes == 1 + TOKENS_AHEAD


def test_a_preempted_sequence_goes_on_first_and_with_its_output() -> None:
    scheduler = preempted()
    submit(scheduler, "new", prompt_tokens=1)
    release(scheduler, "old")
    (drop, young, new, prefill) = scheduler.schedule()
    assert drop == Drop("old#1")
    assert isinstance(young, Admit)
    assert isinstance(new, Admit)
    assert (young.token_ids, young.n_output, new.rid) == ([1, 8, 9], 2, "new#4")
    assert prefill == Prefill([young.rid], [2])
    tokens = run_step(scheduler, {young.rid: 5}, prefilled=[(young.rid, 2)])["d0"]
    assert tokens == tokens_of(["young"], [2], [[5]], {}, {})


def test_what_a_row_did_after_its_preemption_does_not_count() -> None:
    scheduler = preempted()
    release(scheduler, "old")
    assert admitted(scheduler.schedule()) == ["young"]
    assert run_step(scheduler, {"young#2": 6}, prefilled=[("young#2", 2)]) == {}
    scheduler.on_admitted("young#2")
    assert run_step(scheduler, {"young": 5})["d0"] == tokens_of(["young"], [2], [[5]], {}, {})


def test_a_preemption_is_not_blamed_on_the_sequence() -> None:
    scheduler = make_scheduler(model=budget(150), max_attempts=1)
    submit(scheduler, "old", "young", prompt_tokens=1, max_tokens=120)
    scheduler.schedule()
    scheduler.on_admitted(row_of(scheduler, "young"))
    decode(scheduler, "old", TOKENS_AHEAD // 2 + 1)
    assert scheduler.preemptions == 1
    assert scheduler.worker_ready(MODEL) == []


def test_a_preempted_sequence_can_be_released() -> None:
    scheduler = preempted()
    release(scheduler, "young")
    assert scheduler.schedule() == []
    assert (scheduler.queued, knows(scheduler, "young")) == (0, False)


# --- logits that are not finite ------------------------------------------------------------------


def fail(scheduler: Scheduler, row: str) -> dict[str, Tokens]:
    """The worker reports that a row's logits are not finite."""
    step = make_step({row: 0})
    step.failed = {0: "not_finite"}
    return dict(scheduler.on_step(step))


def test_a_failed_row_is_computed_once_more_without_the_prefix_cache_and_then_given_up() -> None:
    model = msgspec.structs.replace(MODEL, cold_blocks=8)
    scheduler = make_scheduler(model=model)
    submit(scheduler, "before", prompt_tokens=70)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("before", 69)])
    run_step(scheduler, {"before": 7}, finish={"before": "stop"})
    submit(scheduler, "a", prompt_tokens=70)
    (first,) = (c for c in scheduler.schedule() if isinstance(c, Admit))
    assert first.cached_tokens == 69
    assert fail(scheduler, first.rid) == {}
    assert scheduler.take_given_up() == []
    commands = scheduler.schedule()
    (again,) = (c for c in commands if isinstance(c, Admit))
    assert [c.rid for c in commands if isinstance(c, Drop)] == [first.rid]
    assert (again.token_ids, again.cached_tokens) == (first.token_ids, 0)
    assert fail(scheduler, again.rid) == {}
    assert [(r.rid, r.code) for r in scheduler.take_given_up()] == [("a", "not_finite")]
    assert [c.rid for c in scheduler.schedule() if isinstance(c, Drop)] == [again.rid]
    assert (scheduler.running, scheduler.queued) == (0, 0)
    assert scheduler.kv_used_bytes == 0
    assert scheduler.take_given_up() == []


def test_what_a_failed_row_has_computed_is_not_kept_for_others() -> None:
    scheduler = make_scheduler(model=msgspec.structs.replace(MODEL, cold_blocks=8))
    submit(scheduler, "a", prompt_tokens=70)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("a", 69)])
    fail(scheduler, row_of(scheduler, "a"))
    assert not any(isinstance(command, Store) for command in scheduler.schedule())
    assert list(scheduler.cached_blocks()) == []


def test_rows_of_the_same_step_get_their_tokens() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", "b", prompt_tokens=1)
    scheduler.schedule()
    step = make_step({row_of(scheduler, "a"): 5, row_of(scheduler, "b"): 6})
    step.failed = {0: "not_finite"}
    ((_, tokens),) = scheduler.on_step(step)
    assert (tokens.rids, tokens.ids) == (["b"], [[6]])
    assert scheduler.generated_tokens == 1


# --- prefixes -------------------------------------------------------------------------------------

COLD = msgspec.structs.replace(MODEL, cold_blocks=20)


def stores(commands: Iterable[SchedulerToWorker]) -> list[Store]:
    """What was to be stored, in order."""
    return [command for command in commands if isinstance(command, Store)]


def admissions(commands: Iterable[SchedulerToWorker]) -> list[tuple[str, int]]:
    """Who was admitted with how many cached tokens, in order."""
    return [(without_number(c.rid), c.cached_tokens) for c in commands if isinstance(c, Admit)]


def caching(**options: Any) -> Scheduler:
    """A scheduler whose worker has a cold store, and computes a prompt in one pass."""
    return make_scheduler(**{"model": COLD, "max_chunk_tokens": 200, "max_running": 4, **options})


def run_prefill(
    scheduler: Scheduler, commands: Iterable[SchedulerToWorker]
) -> list[SchedulerToWorker]:
    """Report every pass that was sent; what comes next."""
    for chunks in passes(commands):
        run_step(scheduler, prefilled=chunks)
    return scheduler.schedule()


def finish(scheduler: Scheduler, rid: str) -> Finish:
    """The last token of a sequence."""
    return run_step(scheduler, {rid: 7}, finish={rid: "stop"})["d0"].finish[0]


def answer(scheduler: Scheduler, rid: str, **request: Any) -> list[SchedulerToWorker]:
    """Run one request to its end, all of it with token 7; what follows from that."""
    submit(scheduler, rid, **request)
    commands = scheduler.schedule()
    while passes(commands):
        commands = run_prefill(scheduler, commands)
    finish(scheduler, rid)
    return scheduler.schedule()


def test_a_prefix_that_two_requests_share_is_computed_once() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=111)
    first = scheduler.schedule()
    assert admissions(first) == [("a", 0)]
    assert prefills(first) == [("a", 32)] * PASSES_AHEAD
    sent = list(first)
    commands = first
    while "b" not in admitted(sent):
        commands = run_prefill(scheduler, commands)
        sent += commands
    assert sum(tokens for _, tokens in prefills(sent)) == 110
    assert admissions(sent) == [("a", 0), ("b", 110)]
    assert {store.rid for store in stores(sent)} == {"a#1"}
    assert sum(len(store.blocks) for store in stores(sent)) == 4


def test_only_what_differs_is_computed() -> None:
    scheduler = caching()
    answer(scheduler, "a", prompt_tokens=71)
    submit(scheduler, "b", prompt_tokens=81)
    commands = scheduler.schedule()
    assert admissions(commands) == [("b", 71)]
    assert prefills(commands) == [("b", 9)]


def test_a_request_that_waits_for_a_prefix_lets_others_pass() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=101)
    other = msgspec.structs.replace(generate("c"), prompt_ids=[90, 91, 92])
    scheduler.submit(other)
    assert admitted(scheduler.schedule()) == ["a", "c"]
    assert (scheduler.running, scheduler.queued) == (2, 1)


def test_what_a_request_has_computed_is_stored_before_it_is_dropped() -> None:
    scheduler = caching()
    store, drop = answer(scheduler, "a", prompt_tokens=71)
    assert isinstance(store, Store)
    assert (store.rid, store.start, len(store.blocks)) == ("a#1", 0, 3)
    assert drop == Drop("a#1")


def test_a_second_turn_reuses_prompt_and_answer() -> None:
    scheduler = caching()
    submit(scheduler, "a", prompt_tokens=40)
    run_prefill(scheduler, scheduler.schedule())
    for token in (60, 61, 62):
        run_step(scheduler, {"a": token})
    finish(scheduler, "a")
    first = [*range(1, 41), 60, 61, 62, 7]
    second = msgspec.structs.replace(generate("b"), prompt_ids=[*first, 80, 81])
    scheduler.submit(second)
    commands = scheduler.schedule()
    # The last token of the answer was never an input.
    assert admissions(commands) == [("b", 43)]
    assert prefills(commands) == [("b", 2)]


def test_a_finish_says_how_many_prompt_tokens_were_cached() -> None:
    scheduler = caching()
    answer(scheduler, "a", prompt_tokens=71)
    submit(scheduler, "b", prompt_tokens=81)
    run_prefill(scheduler, scheduler.schedule())
    assert finish(scheduler, "b") == Finish("stop", cached_tokens=71)
    assert scheduler.cached_tokens == 71


def test_with_all_of_the_prompt_cached_a_request_decodes_at_once() -> None:
    scheduler = caching()
    answer(scheduler, "a", prompt_tokens=71)
    submit(scheduler, "b", prompt_tokens=71)
    commands = scheduler.schedule()
    assert admissions(commands) == [("b", 70)]
    assert prefills(commands) == []
    assert finish(scheduler, "b").cached_tokens == 70


def test_when_the_owner_is_released_the_waiting_request_goes_on() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=101)
    scheduler.schedule()
    release(scheduler, "a")
    assert admissions(scheduler.schedule()) == [("b", 0)]
    run_step(scheduler, prefilled=[("a", 0)])
    assert prefills(scheduler.schedule()) == [("b", 32)]


def test_what_the_owner_had_computed_when_it_was_released_is_reused() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=101)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("a", 32)])
    release(scheduler, "a")
    assert admissions(scheduler.schedule()) == [("b", 32)]


def test_when_the_owner_is_released_one_of_two_waiting_requests_takes_over() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", "c", prompt_tokens=101)
    scheduler.schedule()
    release(scheduler, "a")
    assert admitted(scheduler.schedule()) == ["b"]


def test_a_waiting_request_can_be_released() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=101)
    scheduler.schedule()
    release(scheduler, "b")
    assert (scheduler.running, scheduler.queued) == (1, 0)


def test_a_preempted_sequence_resumes_from_the_cold_store() -> None:
    scheduler = caching(model=budget(175, cold_blocks=20))
    submit(scheduler, "old", prompt_tokens=1, max_tokens=120)
    scheduler.schedule()
    young = msgspec.structs.replace(generate("young", max_tokens=120), prompt_ids=[*range(20, 60)])
    scheduler.submit(young)
    run_prefill(scheduler, scheduler.schedule())
    run_step(scheduler, {"young": 8})
    run_step(scheduler, {"young": 9})
    commands = decode(scheduler, "old", TOKENS_AHEAD // 2 + 1)
    assert dropped(commands) == ["young"]
    assert [(store.rid, store.start, len(store.blocks)) for store in stores(commands)] == [
        ("young#2", 0, 2)
    ]
    release(scheduler, "old")
    commands = scheduler.schedule()
    ((row, cached),) = admissions(commands)
    assert cached == 41
    assert prefills(commands) == []
    assert finish(scheduler, row).cached_tokens == 0


def test_a_new_worker_has_nothing_cached() -> None:
    scheduler = caching()
    answer(scheduler, "a", prompt_tokens=71)
    assert scheduler.cold_blocks_used == 3
    scheduler.worker_ready(COLD)
    assert scheduler.cold_blocks_used == 0
    submit(scheduler, "b", prompt_tokens=71)
    assert admissions(scheduler.schedule()) == [("b", 0)]


def test_who_waited_for_a_prefix_when_the_worker_died_starts_again() -> None:
    scheduler = caching()
    submit(scheduler, "a", "b", prompt_tokens=101)
    scheduler.schedule()
    scheduler.worker_ready(COLD)
    release(scheduler, "a")
    assert admissions(scheduler.schedule()) == [("b", 0)]


def test_without_a_cold_store_nothing_is_reused_or_stored() -> None:
    scheduler = caching(model=MODEL)
    assert answer(scheduler, "a", prompt_tokens=71) == [Drop("a#1")]
    submit(scheduler, "b", "c", prompt_tokens=71)
    commands = scheduler.schedule()
    assert admissions(commands) == [("b", 0), ("c", 0)]
    assert stores(commands) == []
    assert scheduler.cached_tokens == 0


# --- a worker dies --------------------------------------------------------------------------------


def test_a_new_worker_gets_everything_again_in_order() -> None:
    scheduler = make_scheduler(max_running=2)
    submit(scheduler, "a", "b", "c")
    scheduler.schedule()
    assert scheduler.worker_ready(MODEL) == []
    assert (scheduler.running, scheduler.queued, scheduler.kv_used_bytes) == (0, 3, 0)
    assert admitted(scheduler.schedule()) == ["a", "b"]


def test_a_sequence_continues_as_prompt_and_tokens_so_far() -> None:
    scheduler = decoded(7, 8)
    scheduler.worker_ready(MODEL)
    admit, prefill = scheduler.schedule()
    assert isinstance(admit, Admit)
    assert (admit.token_ids, admit.n_output) == ([1, 7, 8], 2)
    assert prefill == Prefill(["a#2"], [2])


def test_positions_go_on_after_a_restart() -> None:
    scheduler = decoded(7, 8)
    scheduler.worker_ready(MODEL)
    scheduler.schedule()
    run_step(scheduler, prefilled=[("a", 2)])
    assert run_step(scheduler, {"a": 9})["d0"].starts == [2]


def test_chunks_of_a_dead_worker_are_not_waited_for() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=41)
    scheduler.schedule()
    scheduler.worker_ready(MODEL)
    assert len(prefills(scheduler.schedule())) == PASSES_AHEAD


def test_a_new_worker_is_not_told_of_old_drops() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a")
    scheduler.schedule()
    release(scheduler, "a")
    scheduler.worker_ready(MODEL)
    assert scheduler.schedule() == []


def test_a_finished_sequence_does_not_run_again() -> None:
    scheduler = decoded(7, finish="stop")
    scheduler.worker_ready(MODEL)
    assert scheduler.schedule() == []
    assert scheduler.resend(again("a", "d0", 0)) is not None


def die(scheduler: Scheduler, *blamed: str) -> list[Rejected]:
    """The worker takes some sequences, dies, and is replaced."""
    scheduler.schedule()
    for rid in blamed:
        scheduler.on_admitted(row_of(scheduler, rid))
    return scheduler.worker_ready(MODEL)


def test_a_sequence_is_given_up_after_max_attempts() -> None:
    scheduler = make_scheduler(max_attempts=2)
    submit(scheduler, "a")
    assert die(scheduler, "a") == []
    (rejected,) = die(scheduler, "a")
    assert (rejected.rid, rejected.code) == ("a", "failed")
    assert "2 times" in rejected.message
    assert not knows(scheduler, "a")
    assert scheduler.schedule() == []


def test_a_sequence_that_the_worker_had_not_taken_is_not_blamed() -> None:
    scheduler = make_scheduler(max_attempts=1)
    submit(scheduler, "a", "b")
    assert [rejected.rid for rejected in die(scheduler, "a")] == ["a"]
    assert die(scheduler) == []
    assert admitted(scheduler.schedule()) == ["b"]


def test_waiting_through_the_deaths_of_a_worker_costs_no_attempt() -> None:
    scheduler = make_scheduler(max_running=1, max_attempts=2)
    submit(scheduler, "a", "b")
    for _ in range(2):
        die(scheduler, "a")
    assert admitted(scheduler.schedule()) == ["b"]


def test_the_last_attempt_is_made_alone() -> None:
    scheduler = make_scheduler(max_attempts=2)
    submit(scheduler, "a", "b")
    die(scheduler, "a", "b")
    submit(scheduler, "c")
    assert admitted(scheduler.schedule()) == ["a"]
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert admitted(scheduler.schedule()) == ["b"]
    release(scheduler, "b")
    assert admitted(scheduler.schedule()) == ["c"]


def test_the_last_attempt_waits_until_the_others_have_ended() -> None:
    scheduler = make_scheduler(max_running=2, max_attempts=2)
    submit(scheduler, "a", "b")
    die(scheduler, "b")
    assert admitted(scheduler.schedule()) == ["a"]
    run_step(scheduler, {"a": 7}, finish={"a": "stop"})
    assert admitted(scheduler.schedule()) == ["b"]


def test_a_sequence_that_kills_its_worker_takes_no_others_along() -> None:
    scheduler = make_scheduler(max_attempts=3)
    submit(scheduler, "innocent", "guilty", "bystander")
    done: list[str] = []
    given_up: list[str] = []
    while len(done) + len(given_up) < 3:
        rids = admitted(scheduler.schedule())
        for rid in rids:
            scheduler.on_admitted(row_of(scheduler, rid))
        if "guilty" in rids:
            given_up += [rejected.rid for rejected in scheduler.worker_ready(MODEL)]
        else:
            run_step(scheduler, dict.fromkeys(rids, 7), finish=dict.fromkeys(rids, "stop"))
            done += rids
    assert given_up == ["guilty"]


def test_a_smaller_worker_gives_up_what_does_not_fit_it() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", prompt_tokens=100)
    submit(scheduler, "b")
    scheduler.schedule()
    smaller = msgspec.structs.replace(MODEL, kv_budget_bytes=20)
    assert [(r.rid, r.code) for r in scheduler.worker_ready(smaller)] == [("a", "too_long")]
    assert admitted(scheduler.schedule()) == ["b"]


# --- a worker dies, with sockets ------------------------------------------------------------------


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.002)
    return value


@contextmanager
def sockets() -> Iterator[tuple[zmq.Context[Any], str]]:
    """A ZeroMQ context and the beginning of ipc addresses that are short enough."""
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as folder:
        try:
            yield context, f"ipc://{folder}/"
        finally:
            context.destroy(linger=0)


class FakeProcess:
    """One end of a link; keeps what it was sent."""

    def __init__(self, channel: channels.Channel[Any, Any]) -> None:
        self.channel = channel
        self.received: list[Any] = []
        self.peers: list[bytes] = []
        channel.attach(self._take)

    def _take(self, sender: bytes, message: Any) -> None:
        self.peers.append(sender)
        self.received.append(message)

    def of(self, kind: type) -> list[Any]:
        """Messages of a kind."""
        return [message for message in self.received if isinstance(message, kind)]


def worker_process(context: zmq.Context[Any], address: str, incarnation: str) -> FakeProcess:
    """A worker that has just presented itself."""
    link = channels.client(context, SchedulerToWorker, address, incarnation)
    link.send(
        WorkerStatus(
            incarnation=incarnation, model=MODEL, epoch="", memory_bytes=0, dropped_frames=0
        )
    )
    return FakeProcess(link)


def test_a_request_that_comes_between_two_workers_is_not_blamed() -> None:
    async def test(context: zmq.Context[Any], base: str) -> None:
        router = FakeProcess(channels.server(context, NodeToRouter, base + "router"))
        service = SchedulerService(
            SchedulerProcess(
                name="scheduler-0",
                node="node-0",
                router_address=base + "router",
                worker_address=base + "worker",
                options=SchedulerOptions(max_attempts=1),
            )
        )
        # It ends when a router has let the node in, which this one never does.
        starting = asyncio.create_task(service.startup())
        try:
            first = worker_process(context, base + "worker", "first")
            await until(lambda: first.received, "the first worker's reset")
            first.channel.close()
            await until(lambda: router.peers, "the node")
            router.channel.send(generate("a"), to=router.peers[0])
            await until(lambda: any(map(busy, router.of(NodeStatus))), "the request")
            second = worker_process(context, base + "worker", "second")
            await until(lambda: second.of(Admit) or router.of(Rejected), "an answer")
            assert admitted(second.received) == ["a"]
        finally:
            starting.cancel()
            await service.shutdown()

    with sockets() as (context, base):
        asyncio.run(test(context, base))


def busy(status: NodeStatus) -> bool:
    """Whether a node has a request, in any state."""
    return status.running + status.queued > 0


# --- everything at once ---------------------------------------------------------------------------

MAX_TURNS = 2000
OPTIONS = SchedulerOptions(
    max_running=3, max_queue=4, max_attempts=3, itl_budget_ms=50.0, max_chunk_tokens=8
)
SMALL = msgspec.structs.replace(
    MODEL, context_length=60, kv_budget_bytes=110, fixed_bytes=3, windowed=[(16, 1)]
)
# Small, so that short sequences have many blocks and outgrow their reservations.
BLOCK = 4
AHEAD = 6


def token_at(rid: str, position: int) -> int:
    """A sequence's token at an output position: no matter which worker generates it."""
    return zlib.crc32(f"{rid}:{position}".encode()) % 50


@dataclass(eq=False)
class Row:
    """A sequence in the fake worker. `token_ids` grow as it decodes."""

    rid: str
    sampling: Sampling
    token_ids: list[int]
    prefill_tokens: int
    generated: int
    prefilled: int
    done: bool = False

    @classmethod
    def of(cls, admit: Admit) -> Row:
        """A row that has what is cached."""
        return cls(
            rid=admit.rid.partition("#")[0],
            sampling=admit.sampling,
            token_ids=list(admit.token_ids),
            prefill_tokens=len(admit.token_ids) - 1,
            generated=admit.n_output,
            prefilled=admit.cached_tokens,
        )

    @property
    def decodes(self) -> bool:
        """Whether its prompt is prefilled."""
        return self.prefilled == self.prefill_tokens

    @property
    def computed(self) -> int:
        """Tokens whose keys and values it has."""
        return len(self.token_ids) - 1 if self.decodes else self.prefilled


@dataclass
class Pass:
    """What was launched: rows that decode, by name, and prefill to report."""

    rows: dict[str, Row]
    prefilled: list[tuple[str, int]]


class FakeWorker:
    """Does with commands what the engine does, without a model: a pass is read when the next one
    has been launched. `store` has the prefix up to and including each block of the cold store."""

    def __init__(self, cold_blocks: int) -> None:
        self.inbox: deque[SchedulerToWorker] = deque()
        self.outbox: deque[Admitted | Step] = deque()
        self.rows: dict[str, Row] = {}
        self._cold_blocks = cold_blocks
        self._store: dict[int, list[int]] = {}
        self._prefills: deque[list[tuple[str, Row | None, int]]] = deque()
        self._in_flight: Pass | None = None

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        decoding = any(row.decodes and not row.done for row in self.rows.values())
        return bool(self.inbox or self._prefills or self._in_flight or decoding)

    def step(self) -> None:
        """Obey, launch a pass with every row that decodes and one Prefill, read the last pass."""
        while self.inbox:
            self._obey(self.inbox.popleft())
        last, self._in_flight = self._in_flight, None
        prefilled, any_chunk = self._run_chunks()
        decoding = {rid: row for rid, row in self.rows.items() if row.decodes and not row.done}
        if decoding or any_chunk:
            self._in_flight = Pass(decoding, prefilled)
            prefilled = []
        step = make_step()
        if last is not None:
            step.pass_s = 0.001
            step.decoded_rows = len(last.rows)
            step.prefilled += last.prefilled
            for rid, row in last.rows.items():
                if not row.done:
                    self._decode(step, rid, row)
        step.prefilled += prefilled
        if step.rids or step.prefilled:
            self.outbox.append(step)

    def _obey(self, command: SchedulerToWorker) -> None:
        match command:
            case Admit():
                assert command.rid not in self.rows
                assert len(self.rows) < OPTIONS.max_running
                self._check_cached(command)
                self.outbox.append(Admitted("", command.rid))
                self.rows[command.rid] = Row.of(command)
            case Prefill():
                columns = zip(command.rids, command.tokens, strict=True)
                assert len(set(command.rids)) == len(command.rids) > 0
                assert 0 < sum(command.tokens) <= OPTIONS.max_chunk_tokens
                self._prefills.append([(rid, self.rows.get(rid), n) for rid, n in columns])
            case Store():
                self._copy(self.rows[command.rid], command)
            case Drop():
                self.rows.pop(command.rid).done = True

    def _check_cached(self, admit: Admit) -> None:
        cached = admit.cached_tokens
        assert len(admit.cached_blocks) == -(-cached // BLOCK)
        assert cached < len(admit.token_ids)
        for index, block in enumerate(admit.cached_blocks):
            end = min(cached, (index + 1) * BLOCK)
            stored = self._store[block]
            assert (len(stored) - 1) // BLOCK == index
            assert stored[:end] == admit.token_ids[:end]

    def _copy(self, row: Row, store: Store) -> None:
        assert store.start % BLOCK == 0
        assert len(set(store.blocks)) == len(store.blocks) > 0
        for index, block in enumerate(store.blocks):
            start = store.start + index * BLOCK
            assert 0 <= block < self._cold_blocks
            assert start < row.computed
            self._store[block] = row.token_ids[: min(row.computed, start + BLOCK)]

    def _run_chunks(self) -> tuple[list[tuple[str, int]], bool]:
        report = []
        for rid, row, tokens in self._prefills.popleft() if self._prefills else []:
            if row is None or row.done:
                report.append((rid, 0))
                continue
            row.prefilled += tokens
            assert tokens > 0
            assert row.prefilled <= row.prefill_tokens
            report.append((rid, tokens))
        return report, any(tokens for _, tokens in report)

    def _decode(self, step: Step, rid: str, row: Row) -> None:
        token = token_at(row.rid, row.generated)
        row.token_ids.append(token)
        row.prefill_tokens = row.prefilled = len(row.token_ids) - 1
        row.generated += 1
        position = len(step.rids)
        step.rids.append(rid)
        step.ids.append(token)
        if token == 0 or row.generated >= row.sampling.max_tokens:
            step.finish[position] = "length" if token else "stop"
            row.done = True


@dataclass
class Client:
    """What one sequence should look like from outside. `row` is its name in the worker."""

    request: Generate
    tokens: list[int]
    row: str | None = None
    admitted: int = 0
    unsent: int = 0
    started: bool = False
    attempts: int = 0
    last_chance: bool = False
    ends: int = 0

    @property
    def worst_case_tokens(self) -> int:
        """Longest that it can become."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far."""
        return self.request.prompt_ids + self.tokens

    def reserved_bytes(self, ahead: int) -> int:
        """Memory for so many tokens more than it has, or for all that it can have."""
        tokens = min(len(self.token_ids) + ahead, self.worst_case_tokens)
        return SMALL.kv_bytes(tokens)

    def leave(self) -> None:
        """Out of the worker."""
        self.row = None
        self.started = False


class Fleet(RuleBasedStateMachine):
    """A scheduler between clients that come and go and workers that die."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(scheduler_module, "TOKENS_AHEAD", AHEAD)
        self.patches.setattr(prefix_tree, "BLOCK_TOKENS", BLOCK)
        self.patches.setattr(prefix_tree, "LEAST_REUSED_TOKENS", 2)
        self.scheduler = Scheduler(OPTIONS)
        self.worker: FakeWorker | None = None
        self.clients: dict[str, Client] = {}
        self.queue: list[str] = []
        self.conversations: list[list[int]] = [[]]
        self.names = (f"r{number}" for number in itertools.count())
        self.admissions = itertools.count()
        self.passes_ahead: deque[int] = deque()
        self.model = SMALL

    @initialize(early=st.booleans(), cold_blocks=st.sampled_from([0, 2, 9, 30]))
    def first_worker(self, early: bool, cold_blocks: int) -> None:
        self.model = msgspec.structs.replace(SMALL, cold_blocks=cold_blocks)
        if early:
            self.new_worker()

    @property
    def running(self) -> list[Client]:
        """Clients in the worker."""
        return [client for client in self.clients.values() if client.row is not None]

    # --- what can happen

    @rule(rids=st.integers(2, 3), max_tokens=st.integers(30, 50))
    def crowd(self, rids: int, max_tokens: int) -> None:
        """Requests that together outgrow the memory."""
        for _ in range(rids):
            self.take(generate(next(self.names), 4, max_tokens=max_tokens))

    @rule(
        data=st.data(),
        more=st.one_of(st.integers(1, 8), st.integers(1, 40)),
        max_tokens=st.integers(1, 50),
        moved=st.integers(0, 24),
        detokenizer=st.sampled_from(["d0", "d1"]),
    )
    def submit(
        self, data: st.DataObject, more: int, max_tokens: int, moved: int, detokenizer: str
    ) -> None:
        rid = next(self.names)
        output_ids = [token_at(rid, position) for position in range(min(moved, max_tokens - 1))]
        before = data.draw(st.sampled_from(self.conversations))
        kept = data.draw(st.integers(0, len(before)))
        prompt_ids = before[:kept] + list(range(50, 50 + more))
        message = msgspec.structs.replace(
            generate(rid, max_tokens=max_tokens, output_ids=output_ids, detokenizer=detokenizer),
            prompt_ids=prompt_ids,
        )
        self.take(message)

    def take(self, message: Generate) -> None:
        longest = len(message.prompt_ids) + message.sampling.max_tokens
        fits = longest <= SMALL.context_length or self.worker is None
        rid = message.rid
        refusal = self.scheduler.submit(message)
        if refusal is None:
            assert fits
            self.clients[rid] = Client(message, list(message.output_ids))
            self.queue.append(rid)
        elif refusal.code == "queue_full":
            known = sum(not client.ends for client in self.clients.values())
            assert known == OPTIONS.max_queue + OPTIONS.max_running
        else:
            assert refusal.code == "too_long"
            assert not fits

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.clients)))
        del self.clients[rid]
        if rid in self.queue:
            self.queue.remove(rid)
        release(self.scheduler, rid)
        assert not knows(self.scheduler, rid)

    @rule()
    def schedule(self) -> None:
        commands = self.scheduler.schedule()
        if self.worker is None:
            assert commands == []
            return
        for command in commands:
            match command:
                case Admit():
                    self.check_admission(command)
                case Prefill():
                    self.check_prefill(command)
                case Drop():
                    self.check_drop(command)
                case Store():
                    assert self.model.cold_blocks > 0
            self.worker.inbox.append(command)
        wanted = any(client.unsent for client in self.running)
        assert len(self.passes_ahead) == PASSES_AHEAD or not wanted
        assert len(self.passes_ahead) <= PASSES_AHEAD

    @precondition(lambda self: self.worker)
    @rule(times=st.integers(1, 3))
    def worker_steps(self, times: int) -> None:
        assert self.worker is not None
        for _ in range(times):
            self.worker.step()

    @precondition(lambda self: self.worker and self.worker.outbox)
    @rule()
    def deliver(self) -> None:
        assert self.worker is not None
        step = self.worker.outbox.popleft()
        if isinstance(step, Admitted):
            self.scheduler.on_admitted(step.rid)
            for client in self.running:
                client.started |= client.row == step.rid
            return
        reported = len(step.prefilled)
        while reported > 0:
            reported -= self.passes_ahead.popleft()
        assert reported == 0
        sent = list(self.scheduler.on_step(step))
        assert len({name for name, _ in sent}) == len(sent)
        for name, tokens in sent:
            self.receive(name, tokens)

    @precondition(lambda self: self.worker)
    @rule(times=st.integers(1, 10))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.schedule()
            self.worker_steps(1)
            while self.worker and self.worker.outbox:
                self.deliver()

    @rule()
    def new_worker(self) -> None:
        self.worker = FakeWorker(self.model.cold_blocks)
        self.passes_ahead.clear()
        ran = sorted(self.running, key=lambda client: client.admitted)
        self.queue[:0] = [client.request.rid for client in ran]
        for client in ran:
            client.attempts += client.started
            client.leave()
        for rejected in self.scheduler.worker_ready(self.model):
            client = self.clients[rejected.rid]
            self.queue.remove(rejected.rid)
            client.ends += 1
            if rejected.code == "failed":
                assert client.attempts == OPTIONS.max_attempts
            else:
                assert rejected.code == "too_long"
                assert client.worst_case_tokens > SMALL.context_length

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.clients)))
        client = self.clients[rid]
        start = data.draw(st.integers(0, len(client.tokens)))
        match self.scheduler.resend(again(rid, client.request.detokenizer, start)):
            case None:
                assert start == len(client.tokens)
                assert not client.ends
            case (str(name), Tokens() as tokens):
                assert name == client.request.detokenizer
                assert tokens.ids == [client.tokens[start:]]
                assert bool(tokens.finish) == bool(client.ends)
            case rejected:
                assert client.ends
                assert rejected.code == "unknown"

    # --- what must hold

    def check_admission(self, admit: Admit) -> None:
        rid = admit.rid.partition("#")[0]
        # Only one that waits for a prefix lets others pass.
        assert rid == self.queue[0] or self.model.cold_blocks
        self.queue.remove(rid)
        client = self.clients[rid]
        assert admit.token_ids == client.token_ids
        assert admit.n_output == len(client.tokens)
        client.row = admit.rid
        client.unsent = len(admit.token_ids) - 1 - admit.cached_tokens
        client.admitted = next(self.admissions)
        client.last_chance = client.attempts == OPTIONS.max_attempts - 1
        if any(client.last_chance for client in self.running):
            assert self.running == [client]

    def check_prefill(self, prefill: Prefill) -> None:
        self.passes_ahead.append(len(prefill.rids))
        by_row = {client.row: client for client in self.running}
        for row, tokens in zip(prefill.rids, prefill.tokens, strict=True):
            by_row[row].unsent -= tokens
            assert by_row[row].unsent >= 0

    def check_drop(self, drop: Drop) -> None:
        for client in self.running:
            if client.row == drop.rid:
                assert len(self.running) > 1
                self.queue.insert(0, client.request.rid)
                client.leave()

    def receive(self, name: str, tokens: Tokens) -> None:
        for position, rid in enumerate(tokens.rids):
            client = self.clients[rid]
            assert client.request.detokenizer == name
            assert not client.ends
            assert tokens.starts[position] == len(client.tokens)
            for token in tokens.ids[position]:
                assert token == token_at(rid, len(client.tokens))
                client.tokens.append(token)
            if position in tokens.finish:
                assert tokens.finish[position].cached_tokens < len(client.request.prompt_ids)
                client.ends += 1
                client.leave()
                self.conversations.append(client.token_ids)

    @invariant()
    def kv_bytes_are_those_of_the_running(self) -> None:
        used = self.scheduler.kv_used_bytes
        assert used <= SMALL.kv_budget_bytes
        assert used <= sum(client.reserved_bytes(AHEAD) for client in self.running)
        assert self.scheduler.running == len(self.running) <= OPTIONS.max_running

    @invariant()
    def the_cold_store_is_not_overfull(self) -> None:
        assert 0 <= self.scheduler.cold_blocks_used <= self.model.cold_blocks

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert self.scheduler.queued == len(self.queue)
        assert self.scheduler.queued + self.scheduler.running <= (
            OPTIONS.max_queue + OPTIONS.max_running
        )

    def teardown(self) -> None:
        try:
            self.finish_everything()
        finally:
            self.patches.undo()

    def finish_everything(self) -> None:
        """In the end everything that is wanted has ended once, and nothing is left behind."""
        if self.worker is None:
            self.new_worker()
        assert self.worker is not None
        for _ in range(MAX_TURNS):
            if not self.worker.busy and all(client.ends for client in self.clients.values()):
                break
            self.turn(1)
        self.turn(1)
        assert [rid for rid, client in self.clients.items() if client.ends != 1] == []
        assert self.worker.rows == {}
        for rid in self.clients:
            release(self.scheduler, rid)
        assert self.scheduler.schedule() == []
        scheduler = self.scheduler
        assert (scheduler.running, scheduler.queued, scheduler.kv_used_bytes) == (0, 0, 0)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
