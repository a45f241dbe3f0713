"""Who is next: shares that follow weights, nobody forgotten, no place left empty."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxfleet.common.fair_queue import ADVANCE_TOKENS, FairQueue
from mlxfleet.common.messages import PRIORITIES, Party, Priority
from mlxfleet.common.virtual_time import MAX_REMEMBERED, MOST_DEBT_TOKENS

PLACES = 8


def party(
    client: str = "a",
    request: str = "r",
    *,
    weight: float = 1.0,
    priority: Priority = "interactive",
) -> Party:
    return Party(client=client, request=request, weight=weight, priority=priority)


def push(queue: FairQueue[str], name: str, count: int, *, of: Party) -> list[str]:
    """Items of one request, which wait."""
    items = [f"{name}{number}" for number in range(count)]
    for item in items:
        queue.push(item, of)
    return items


def start_next(queue: FairQueue[str]) -> str:
    item = queue.first()
    assert item is not None
    queue.start(item)
    return item


def fill(queue: FairQueue[str], places: int = PLACES) -> list[str]:
    """Give places as long as there are some and somebody waits."""
    started = []
    while queue.waiting and queue.started < places:
        started.append(start_next(queue))
    return started


# --- order ------------------------------------------------------------------------------------


def test_one_request_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    items = push(queue, "x", 5, of=party())
    assert [start_next(queue) for _ in items] == items


def test_clients_that_wait_take_turns_before_anything_is_computed() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "a", 4, of=party("a"))
    push(queue, "b", 4, of=party("b"))
    assert [start_next(queue) for _ in range(8)] == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_requests_of_a_client_take_turns_too() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "wide", 4, of=party(request="wide"))
    push(queue, "single", 1, of=party(request="single"))
    assert [start_next(queue) for _ in range(3)] == ["wide0", "single0", "wide1"]


def test_many_requests_do_not_make_a_client_larger() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(6):
        push(queue, f"a{number}-", 1, of=party("a", f"r{number}"))
    push(queue, "b", 2, of=party("b"))
    assert [start_next(queue)[0] for _ in range(4)] == ["a", "b", "a", "b"]


def test_batch_waits_for_interactive() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "batch", 1, of=party("a", priority="batch"))
    push(queue, "now", 2, of=party("b"))
    assert [start_next(queue) for _ in range(3)] == ["now0", "now1", "batch0"]


def test_a_newcomer_is_next_beside_one_that_has_had_much() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "wide", 20, of=party("a"))
    for item in fill(queue):
        queue.charge(item, 1000)
    push(queue, "new", 1, of=party("b"))
    assert next(queue.in_order()) == "new0"


def test_who_was_idle_has_no_claim_from_then() -> None:
    """Else one that comes back would have the node to itself until it has had as much."""
    queue: FairQueue[str] = FairQueue()
    push(queue, "b", 1, of=party("b"))
    start_next(queue)
    push(queue, "a", 200, of=party("a"))
    for _ in range(50):
        item = start_next(queue)
        queue.charge(item, 1000)
        queue.discard(item)
    push(queue, "b-wide", 50, of=party("b", "wide"))
    turns = Counter(start_next(queue)[0] for _ in range(20))
    assert turns == {"a": 10, "b": 10}


def test_old_debts_are_bounded() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "b", 100, of=party("b"))
    start_next(queue)
    push(queue, "a", 1, of=party("a"))
    queue.start("a0")
    queue.charge("a0", 10**9)
    queue.discard("a0")
    push(queue, "again", 1, of=party("a"))
    served = 0
    while (item := start_next(queue)) != "again0":
        served += 1
        queue.charge(item, ADVANCE_TOKENS)
        queue.discard(item)
    assert served <= MOST_DEBT_TOKENS / ADVANCE_TOKENS + 1


def test_tokens_given_in_advance_are_not_charged_twice() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "a", 2, of=party("a"))
    push(queue, "b", 2, of=party("b"))
    queue.start("a0")
    queue.charge("a0", ADVANCE_TOKENS)
    queue.start("b0")
    assert next(queue.in_order()) == "a1"


def test_what_was_given_in_advance_and_not_used_is_given_back() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "a", 2, of=party("a"))
    push(queue, "b", 2, of=party("b"))
    queue.start("a0")
    queue.discard("a0")
    assert next(queue.in_order()) == "a1"


def test_what_is_put_back_is_the_first_of_its_request() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "x", 3, of=party())
    assert fill(queue, 2) == ["x0", "x1"]
    queue.put_back("x1")
    assert list(queue.in_order()) == ["x1", "x2"]
    assert queue.started == 1


def test_clients_that_are_gone_are_not_remembered_without_end() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "stays", 1, of=party("stays"))
    for number in range(2 * MAX_REMEMBERED):
        name = f"c{number}"
        queue.push(name, party(name))
        queue.start(name)
        queue.charge(name, 10 + number)
        queue.discard(name)
    level = queue._classes["interactive"]
    assert len(level) == 1
    assert len(level._left) <= MAX_REMEMBERED


# --- claims -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["a", "b"])
def test_beside_one_that_holds_all_places_a_newcomer_is_owed_one(client: str) -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "wide", 20, of=party("a"))
    fill(queue)
    push(queue, "new", 1, of=party(client, "new"))
    assert queue.owed(PLACES) == "new0"
    assert queue.holds_none("new0")
    assert queue.yielding("new0", PLACES) == [f"wide{n}" for n in reversed(range(PLACES))]


def test_one_that_holds_all_places_is_owed_no_more() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "wide", 20, of=party("a"))
    fill(queue)
    assert queue.owed(PLACES) is None
    assert queue.yielding(f"wide{PLACES}", PLACES) == []


def test_among_single_requests_nobody_is_owed_anything() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(PLACES + 1):
        push(queue, f"s{number}-", 1, of=party("a", str(number)))
    fill(queue)
    assert queue.owed(PLACES) is None


def test_a_client_of_many_single_requests_yields_to_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(2 * PLACES):
        push(queue, f"s{number}-", 1, of=party("a", str(number)))
    fill(queue)
    push(queue, "b", 1, of=party("b"))
    assert queue.owed(PLACES) == "b0"
    assert len(queue.yielding("b0", PLACES)) == PLACES


def take_over(queue: FairQueue[str]) -> Counter[str]:
    """Let those that are owed places take them from those that yield; how many each took, by the
    first letter."""
    taken: Counter[str] = Counter()
    while (item := queue.owed(PLACES)) is not None:
        queue.put_back(queue.yielding(item, PLACES)[0])
        queue.start(item)
        taken[item[0]] += 1
    return taken


@pytest.mark.parametrize(("weight", "places"), [(1.0, PLACES // 2), (3.0, PLACES * 3 // 4)])
def test_places_are_shared_by_weight_and_then_stay_where_they_are(
    weight: float, places: int
) -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "a", 20, of=party("a"))
    fill(queue)
    push(queue, "b", 20, of=party("b", weight=weight))
    assert take_over(queue) == {"b": places}


def test_batch_yields_to_interactive_and_never_the_other_way() -> None:
    queue: FairQueue[str] = FairQueue()
    push(queue, "d", 20, of=party("a", priority="batch"))
    fill(queue)
    push(queue, "now", 20, of=party("b"))
    assert take_over(queue) == {"n": PLACES}
    assert queue.yielding("d0", PLACES) == []


# --- whatever happens -------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_what_is_computed_converges_to_the_weights(weights: list[float], seed: int) -> None:
    """Items of random lengths, all clients always waiting: what each has had by weight differs by
    no more than a few items' worth."""
    rng = random.Random(seed)
    queue: FairQueue[str] = FairQueue()
    longest, had = 300, dict.fromkeys(range(len(weights)), 0)
    for client, weight in enumerate(weights):
        push(queue, f"{client}-", 60, of=party(str(client), weight=weight))
    lengths = {}
    clients = queue._classes["interactive"]
    while all((client := clients.get(str(c))) and client.waiting for c in had):
        for item in fill(queue):
            lengths[item] = rng.randint(1, longest)
        # Those that hold places are computed at the same speed, as rows of a batch are.
        for item in list(lengths):
            done = min(lengths[item], 20)
            queue.charge(item, done)
            had[int(item.split("-")[0])] += done
            lengths[item] -= done
            if not lengths[item]:
                del lengths[item]
                queue.discard(item)
    shares = [had[client] / weight for client, weight in enumerate(weights)]
    assert max(shares) - min(shares) <= 2 * PLACES * longest / min(weights)
    assert sum(had.values()) > 60


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rivals=st.integers(1, 12), same_client=st.booleans())
def test_an_endless_stream_of_newcomers_does_not_starve_one_that_waits(
    seed: int, rivals: int, same_client: bool
) -> None:
    rng = random.Random(seed)
    queue: FairQueue[str] = FairQueue()
    wide = push(queue, "wide", 40, of=party("a", "wide"))
    for item in fill(queue, 1):
        queue.charge(item, rng.randint(1, 500))
        queue.discard(item)
    newcomers = 0

    def keep_waiting() -> None:
        nonlocal newcomers
        while queue.waiting - len([i for i in wide if i in queue]) < rivals:
            client = "a" if same_client else f"c{newcomers}"
            queue.push(f"new{newcomers}", party(client, f"r{newcomers}"))
            newcomers += 1

    served = 0
    for _ in range(10):
        keep_waiting()
        rivals_served = 0
        while not (item := start_next(queue)).startswith("wide"):
            queue.charge(item, rng.randint(1, 100))
            queue.discard(item)
            keep_waiting()
            rivals_served += 1
            # Each is charged a token at least, and the clock moves by its part of that.
            assert rivals_served <= (rivals + 1) * (MOST_DEBT_TOKENS + 500)
        queue.charge(item, rng.randint(1, 100))
        queue.discard(item)
        served += 1
    assert served == 10


class Books(RuleBasedStateMachine):
    """Random pushes, starts, charges and ends, beside the simplest books of who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[str] = FairQueue()
        self.waiting: dict[str, Party] = {}
        self.started: dict[str, Party] = {}
        self.count = 0

    @rule(
        client=st.sampled_from("abc"),
        request=st.sampled_from("xyz"),
        priority=st.sampled_from(PRIORITIES),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
    )
    def push(self, client: str, request: str, priority: Priority, weight: float) -> None:
        item, self.count = f"i{self.count}", self.count + 1
        of = party(client, request, priority=priority, weight=weight)
        self.queue.push(item, of)
        self.waiting[item] = of

    @precondition(lambda self: self.waiting)
    @rule()
    def start(self) -> None:
        item = start_next(self.queue)
        of = self.waiting.pop(item)
        if of.priority == "batch":
            assert all(other.priority == "batch" for other in self.waiting.values())
        self.started[item] = of

    @precondition(lambda self: self.started)
    @rule(data=st.data(), tokens=st.integers(0, 500))
    def charge(self, data: st.DataObject, tokens: int) -> None:
        self.queue.charge(data.draw(st.sampled_from(sorted(self.started))), tokens)

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.started)))
        self.queue.put_back(item)
        self.waiting[item] = self.started.pop(item)

    @precondition(lambda self: self.started or self.waiting)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted({**self.started, **self.waiting})))
        self.queue.discard(item)
        self.started.pop(item, None)
        self.waiting.pop(item, None)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.started == len(self.started)
        assert self.queue.waiting == len(self.waiting)
        assert sorted(self.queue.in_order()) == sorted(self.waiting)
        assert self.queue.first() == next(self.queue.in_order(), None)
        for priority, level in self.queue._classes.items():
            for client in level:
                held = [p for p in self.started.values() if p.priority == priority]
                assert client.held == sum(p.client == client.name for p in held)
                assert client.held == sum(request.held for request in client.requests)
                assert client.ahead == sum(request.ahead for request in client.requests)
                assert client.ahead >= 0

    @invariant()
    def who_is_owed_a_place_finds_one_or_somebody_who_yields(self) -> None:
        item = self.queue.owed(PLACES)
        if item is not None and self.queue.started >= PLACES:
            yielding = self.queue.yielding(item, PLACES)
            assert yielding
            assert len(set(yielding)) == len(yielding)
            assert set(yielding) <= set(self.started)

    def teardown(self) -> None:
        for item in [*self.started, *self.waiting]:
            self.queue.discard(item)
        assert all(len(level) == 0 for level in self.queue._classes.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
