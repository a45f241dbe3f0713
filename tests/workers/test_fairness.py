"""How a node shares its rows: fair between clients and requests, with guests, and exact tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.config import GUEST_ROWS, SchedulerOptions, SimOptions
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import (
    Admit,
    Drop,
    Generate,
    ModelInfo,
    Party,
    Prefill,
    Priority,
    Release,
    Sampling,
    SchedulerToWorker,
    Step,
)
from mlxfleet.workers.scheduler import LEAST_PROGRESS, Scheduler
from tests.workers.attempts import ATTEMPT, row_of, without_number
from tests.workers.sim_driver import OPTIONS, Node

MODEL = ModelInfo(
    vocab_size=100,
    context_length=2000,
    eos_ids=[0],
    kv_budget_bytes=10**6,
    fixed_bytes=0,
    bytes_per_token=1,
    windowed=[],
    weights_bytes=0,
)
ROWS = 4


@dataclass
class Desk:
    """A scheduler whose worker decodes every row by one token at a time."""

    model: ModelInfo = MODEL
    max_running: int = ROWS
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        options = SchedulerOptions(max_running=self.max_running, max_chunk_tokens=64)
        self.scheduler = Scheduler(options)
        self.scheduler.worker_ready(self.model)

    def submit(
        self,
        name: str,
        count: int = 1,
        *,
        first: int = 0,
        client: str = "a",
        prompt: Iterable[int] = (1,),
        max_tokens: int = 500,
        weight: float = 1.0,
        priority: Priority = "interactive",
        siblings: bool = False,
    ) -> None:
        """Sequences of one request, which is named like them."""
        for number in range(first, first + count):
            rejected = self.scheduler.submit(
                Generate(
                    rid=f"{name}{number}",
                    attempt=ATTEMPT,
                    detokenizer="d",
                    prompt_ids=list(prompt),
                    output_ids=[],
                    sampling=Sampling(seed=number, max_tokens=max_tokens),
                    party=Party(client=client, request=name, weight=weight, priority=priority),
                    siblings=siblings,
                )
            )
            assert rejected is None

    def schedule(self) -> list[SchedulerToWorker]:
        return self.scheduler.schedule()

    def decode(self, steps: int) -> list[SchedulerToWorker]:
        """Let every row that decodes have some tokens; what the worker was sent meanwhile."""
        commands: list[SchedulerToWorker] = []
        for _ in range(steps):
            rows = [
                row for row, s in self.scheduler._running.items() if s.state.value == "decoding"
            ]
            list(self.scheduler.on_step(Step(epoch="", rids=rows, ids=[7] * len(rows))))
            commands += self.schedule()
        return commands

    def end(self, rid: str) -> list[SchedulerToWorker]:
        """A sequence's last token."""
        row = row_of(self.scheduler, rid)
        list(self.scheduler.on_step(Step(epoch="", rids=[row], ids=[7], finish={0: "stop"})))
        return self.schedule()

    def release(self, rid: str) -> None:
        self.scheduler.release(Release(rid, ATTEMPT))

    def running(self, name: str) -> int:
        """How many sequences of a request run."""
        rows = self.scheduler._running.values()
        return sum(sequence.party.request == name for sequence in rows)


def admitted(commands: Iterable[SchedulerToWorker]) -> list[str]:
    return [without_number(command.rid) for command in commands if isinstance(command, Admit)]


def dropped(commands: Iterable[SchedulerToWorker]) -> list[str]:
    return [without_number(command.rid) for command in commands if isinstance(command, Drop)]


# --- who is admitted --------------------------------------------------------------------------


def test_free_rows_go_to_clients_in_turns() -> None:
    desk = Desk()
    desk.submit("wide", 10, client="a")
    desk.submit("other", 10, client="b")
    assert admitted(desk.schedule()) == ["wide0", "other0", "wide1", "other1"]


def test_interactive_sequences_are_admitted_before_batch_ones() -> None:
    desk = Desk()
    desk.submit("batch", 10, priority="batch")
    desk.submit("now", 2, client="b")
    assert admitted(desk.schedule()) == ["now0", "now1", "batch0", "batch1"]


def test_a_wide_request_alone_has_all_rows_and_no_more() -> None:
    desk = Desk()
    desk.submit("wide", 20)
    assert len(admitted(desk.schedule())) == ROWS
    commands = desk.decode(2 * LEAST_PROGRESS)
    assert (admitted(commands), dropped(commands)) == ([], [])
    assert desk.scheduler.running == ROWS


def test_single_requests_alone_have_all_rows_and_no_more() -> None:
    desk = Desk()
    for number in range(20):
        desk.submit(f"single{number}-")
    assert len(admitted(desk.schedule())) == ROWS
    assert admitted(desk.decode(2 * LEAST_PROGRESS)) == []


# --- guests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["a", "b"])
def test_who_would_wait_for_a_wide_request_is_a_guest_at_once(client: str) -> None:
    desk = Desk()
    desk.submit("wide", 20)
    desk.schedule()
    desk.submit("guest", client=client)
    commands = desk.schedule()
    assert (admitted(commands), dropped(commands)) == (["guest0"], [])
    assert desk.scheduler.running == ROWS + 1


def test_after_a_guest_no_row_is_filled_until_there_are_as_many_as_should_run() -> None:
    desk = Desk()
    desk.submit("wide", 20)
    desk.schedule()
    desk.submit("guest", client="b")
    desk.schedule()
    assert admitted(desk.end("wide0")) == []
    assert admitted(desk.end("wide1")) == ["wide4"]


def test_there_are_no_more_guests_than_the_worker_has_memory_for() -> None:
    desk = Desk(max_running=8)
    desk.submit("wide", 20)
    desk.schedule()
    for number in range(5):
        desk.submit(f"guest{number}-", client=f"c{number}")
    assert len(admitted(desk.schedule())) == GUEST_ROWS
    assert desk.scheduler.running == SchedulerOptions(max_running=8).rows


def test_batch_sequences_are_no_guests() -> None:
    desk = Desk()
    desk.submit("wide", 20, priority="batch")
    desk.schedule()
    desk.submit("other", client="b", priority="batch")
    assert admitted(desk.schedule()) == []


def test_interactive_sequences_are_guests_beside_batch_ones_of_one_row_each() -> None:
    desk = Desk()
    for number in range(ROWS):
        desk.submit(f"batch{number}-", client=f"c{number}", priority="batch")
    desk.schedule()
    desk.submit("now", client="b")
    assert admitted(desk.schedule()) == ["now0"]


# --- preemption -------------------------------------------------------------------------------


def test_rows_yield_only_after_some_progress() -> None:
    desk = Desk()
    desk.submit("wide", 20)
    desk.schedule()
    desk.submit("other", 20, client="b")
    assert admitted(desk.schedule()) == ["other0"]
    commands = desk.decode(LEAST_PROGRESS - 1)
    assert (admitted(commands), dropped(commands)) == ([], [])
    commands = desk.decode(1)
    assert (admitted(commands), dropped(commands)) == (["other1"], ["wide3"])
    assert desk.scheduler.preemptions == 1


def test_where_memory_ends_a_row_with_some_progress_yields() -> None:
    # Room for what the four rows below begin with, and little more.
    desk = Desk(msgspec.structs.replace(MODEL, kv_budget_bytes=450))
    desk.submit("wide", 2, max_tokens=300)
    desk.schedule()
    desk.decode(LEAST_PROGRESS + 1)
    # The last of the same request has had nothing yet, and would be the first to go.
    desk.submit("wide", first=2, max_tokens=300)
    desk.submit("other", client="b", max_tokens=300)
    commands = desk.schedule()
    while not dropped(commands):
        commands = desk.decode(1)
    assert dropped(commands)[0] in ("wide0", "wide1")


def test_two_wide_requests_come_to_have_equal_parts_and_stay_there() -> None:
    desk = Desk()
    desk.submit("wide", 20)
    desk.schedule()
    desk.submit("other", 20, client="b")
    desk.decode(LEAST_PROGRESS + 1)
    assert desk.running("other") == ROWS // 2
    preemptions = desk.scheduler.preemptions
    desk.decode(3 * LEAST_PROGRESS)
    assert desk.running("other") == ROWS // 2
    assert desk.scheduler.preemptions == preemptions


@pytest.mark.parametrize(("weight", "rows"), [(1.0, 4), (3.0, 6)])
def test_rows_are_shared_by_weight(weight: float, rows: int) -> None:
    desk = Desk(max_running=8)
    desk.submit("wide", 20)
    desk.schedule()
    desk.submit("other", 20, client="b", weight=weight)
    desk.decode(LEAST_PROGRESS + 1)
    assert desk.running("other") == rows


def test_batch_rows_yield_to_a_wide_interactive_request() -> None:
    desk = Desk()
    desk.submit("batch", 20, priority="batch")
    desk.schedule()
    desk.submit("now", 20)
    desk.decode(LEAST_PROGRESS + 1)
    assert desk.running("batch") <= 1
    assert desk.running("now") == ROWS


def test_a_preempted_row_goes_on_when_there_is_a_row_again() -> None:
    desk = Desk()
    desk.submit("wide", ROWS)
    desk.schedule()
    desk.submit("other", 2, client="b")
    assert dropped(desk.decode(LEAST_PROGRESS)) == ["wide3"]
    assert admitted(desk.end("other0")) == []
    (admit,) = [c for c in desk.end("other1") if isinstance(c, Admit)]
    assert without_number(admit.rid) == "wide3"
    assert admit.n_output == LEAST_PROGRESS


def test_memory_is_shared_as_rows_are() -> None:
    """A guest that finds a row but no memory waits until some of it may be taken."""
    # Each row has memory for 64 tokens more than it has.
    desk = Desk(model=msgspec.structs.replace(MODEL, kv_budget_bytes=3 * 65 + 30))
    desk.submit("wide", 20, max_tokens=200)
    assert len(admitted(desk.schedule())) == 3
    desk.submit("other", client="b", max_tokens=60)
    assert admitted(desk.schedule()) == []
    commands = desk.decode(4 * LEAST_PROGRESS)
    assert "other0" in admitted(commands)
    assert set(dropped(commands)) <= {"wide0", "wide1", "wide2"}


def test_memory_that_a_wide_request_needs_is_not_taken_from_others() -> None:
    desk = Desk(model=msgspec.structs.replace(MODEL, kv_budget_bytes=300))
    desk.submit("wide", 3, max_tokens=200)
    desk.submit("other", client="b", max_tokens=60)
    desk.schedule()
    assert desk.running("other") == 1
    commands = desk.decode(59)
    assert "other0" not in dropped(commands)
    assert any(rid.startswith("wide") for rid in dropped(commands))


# --- prompts ----------------------------------------------------------------------------------


def test_the_prompt_of_a_newcomer_is_next() -> None:
    desk = Desk()
    for number in range(3):
        desk.submit(f"wide{number}-", prompt=range(1000 * number, 1000 * number + 900))
    first = [c for c in desk.schedule() if isinstance(c, Prefill)]
    assert first
    desk.submit("other", client="b", prompt=range(5000, 5300))
    desk.schedule()
    row = row_of(desk.scheduler, "wide0-0")
    list(desk.scheduler.on_step(Step(epoch="", prefilled=[(row, first[0].tokens[0])])))
    (prefill,) = [c for c in desk.schedule() if isinstance(c, Prefill)]
    assert [without_number(rid) for rid in prefill.rids] == ["other0"]


def test_one_clients_prompts_are_prefilled_one_after_the_other() -> None:
    desk = Desk()
    for number in range(3):
        desk.submit(f"single{number}-", prompt=range(1000 * number, 1000 * number + 900))
    order = []
    for _ in range(40):
        for prefill in [c for c in desk.schedule() if isinstance(c, Prefill)]:
            order += [without_number(rid) for rid in prefill.rids]
            pieces = list(zip(prefill.rids, prefill.tokens, strict=True))
            list(desk.scheduler.on_step(Step(epoch="", prefilled=pieces)))
    assert order == sorted(order)


# --- shared prefixes --------------------------------------------------------------------------


def caching(blocks: int) -> Desk:
    """A desk of one row, with a cold store of so many blocks."""
    return Desk(model=msgspec.structs.replace(MODEL, cold_blocks=blocks), max_running=1)


def run_through(desk: Desk, rid: str) -> Admit:
    """Let a sequence run from its admission, which is to come now, to its end."""
    (admit,) = [c for c in desk.schedule() if isinstance(c, Admit)]
    assert without_number(admit.rid) == rid
    sequence = desk.scheduler._sequences[rid]
    while sequence.prefill_done < sequence.prefill_tokens:
        missing = sequence.prefill_tokens - sequence.prefill_done
        list(desk.scheduler.on_step(Step(epoch="", prefilled=[(sequence.row, missing)])))
    row = sequence.row
    list(desk.scheduler.on_step(Step(epoch="", rids=[row], ids=[7], finish={0: "stop"})))
    return admit


@pytest.mark.parametrize("siblings", [True, False])
def test_what_siblings_share_is_kept_while_others_fill_the_cache(siblings: bool) -> None:
    desk = caching(6)
    prompt = range(2 * BLOCK_TOKENS + 1)
    desk.submit("wide", prompt=prompt, siblings=siblings)
    run_through(desk, "wide0")
    for number in range(4):
        desk.submit(f"flood{number}-", prompt=range(1000 * number + 500, 1000 * number + 600))
        run_through(desk, f"flood{number}-0")
    desk.submit("wide", 2, prompt=prompt, siblings=siblings)  # The first is known.
    assert run_through(desk, "wide1").cached_tokens == (2 * BLOCK_TOKENS if siblings else 0)


def test_what_siblings_shared_is_let_go_with_the_last_of_them() -> None:
    desk = caching(6)
    desk.submit("wide", 2, prompt=range(2 * BLOCK_TOKENS + 1), siblings=True)
    for rid in ("wide0", "wide1"):
        run_through(desk, rid)
        desk.release(rid)
    assert len(desk.scheduler._shared) == 0
    for number in range(4):
        desk.submit(f"flood{number}-", prompt=range(1000 * number + 500, 1000 * number + 600))
        run_through(desk, f"flood{number}-0")
    desk.submit("late", prompt=range(2 * BLOCK_TOKENS + 1))
    assert run_through(desk, "late0").cached_tokens == 0


def test_a_new_worker_holds_nothing() -> None:
    desk = caching(6)
    desk.submit("wide", 2, prompt=range(2 * BLOCK_TOKENS + 1), siblings=True)
    run_through(desk, "wide0")
    desk.scheduler.worker_ready(desk.model)
    assert run_through(desk, "wide1").cached_tokens == 0
    for rid in ("wide0", "wide1"):
        desk.release(rid)


# --- on the simulated engine ------------------------------------------------------------------


def shared_node(max_running: int, *, kv_tokens: int = 8192) -> Node:
    options = msgspec.convert({**OPTIONS.__dict__, "sim_kv_tokens": kv_tokens}, SimOptions)
    return Node(options, SchedulerOptions(max_running=max_running))


@settings(max_examples=12, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(1, 6),
            st.integers(1, 60),
            st.integers(1, 200),
            st.sampled_from(["interactive", "batch"]),
            st.integers(0, 30),
        ),
        min_size=1,
        max_size=5,
    ),
    kv_tokens=st.sampled_from([1024, 2048, 8192]),
)
def test_tokens_do_not_depend_on_who_yields_to_whom(
    requests: list[tuple[str, int, int, int, Priority, int]], kv_tokens: int
) -> None:
    node = shared_node(3, kv_tokens=kv_tokens)
    expected: dict[str, tuple[list[int], int]] = {}
    for number, (client, n, length, max_tokens, priority, turns) in enumerate(requests):
        prompt = [1 + (number * 7 + i) % 900 for i in range(length)]
        party = Party(client=client, request=str(number), priority=priority)
        for choice in range(n):
            rid = f"{number}-{choice}"
            expected[rid] = (prompt, max_tokens)
            node.submit(rid, prompt, max_tokens, party=party, siblings=n > 1)
        for _ in range(turns):
            if node.scheduler.running + node.scheduler.queued:
                node.turn()
    node.run(*expected)
    alone: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for rid, (prompt, max_tokens) in expected.items():
        key = tuple(prompt), max_tokens
        if key not in alone:
            quiet = shared_node(1)
            quiet.submit("x", prompt, max_tokens)
            quiet.run("x")
            alone[key] = quiet.tokens["x"]
        assert node.tokens[rid] == alone[key]
    assert node.scheduler.running == node.scheduler.queued == 0


def test_a_single_request_ends_long_before_a_wide_one_that_came_first() -> None:
    node = shared_node(4)
    wide = [f"wide-{i}" for i in range(16)]
    for rid in wide:
        node.submit(rid, [1, 2, 3], 300, party=Party(client="a", request="wide"), siblings=True)
    node.turn()
    before = node.clock.now
    node.submit("single", [4, 5, 6], 8, party=Party(client="a", request="single"))
    node.run("single")
    assert node.first_s["single"] - before < 10 * 0.02
    assert not node.done_s.keys() & set(wide)
    node.run(*wide)
