"""Who may start next: bounds, priorities, fairness, deadlines, and no count that leaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from mlxfleet.common.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from mlxfleet.common.messages import Priority
from mlxfleet.router.admission import Admission, Ticket
from mlxfleet.router.patience import LOOK_AGAIN_S
from mlxfleet.router.places import Capacity, Place


class Desk:
    """An Admission whose capacity can be set, and a record of who started."""

    def __init__(self, capacity: int | None = 1, most: int = 0, **fields: Any) -> None:
        self.capacity = capacity
        self.most = most
        self.started: list[str] = []
        self.places: dict[str, list[Place]] = {}
        limits = {"max_sequences": 100, "max_per_client": None, "max_wait_s": 60, "node_wait_s": 60}
        self.admission = Admission(["m"], self.now, **{**limits, **fields})

    def now(self, model: str) -> Capacity | None:
        """The capacity now."""
        if self.capacity is None:
            return None
        return Capacity(self.capacity, max(self.capacity, self.most))

    async def serve_wide(self, name: str, ticket: Ticket, gone: asyncio.Event) -> None:
        """A request of several sequences, which start as they get places."""
        held = self.places[name] = []
        with self.admission.room_for(ticket):
            async with self.admission.turn(ticket) as turn:
                for _ in range(ticket.sequences):
                    held.append(await turn.next())
                    self.started.append(name)
                await gone.wait()

    async def serve(self, name: str, ticket: Ticket, gone: asyncio.Event) -> None:
        """A request that runs until its event."""
        with self.admission.room_for(ticket):
            async with self.admission.turn(ticket):
                self.started.append(name)
                await gone.wait()


def ticket(
    client: str = "a",
    sequences: int = 1,
    priority: Priority = "interactive",
    deadline: float | None = None,
) -> Ticket:
    return Ticket(
        client=client, model="m", sequences=sequences, priority=priority, deadline=deadline
    )


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_starts_by_priority_then_fairly_then_in_order() -> None:
    async def test() -> None:
        desk = Desk(capacity=1)
        order = [
            ("b1", ticket("b", priority="batch")),
            ("a1", ticket("a")),
            ("a2", ticket("a")),
            ("a3", ticket("a")),
            ("c1", ticket("c")),
        ]
        gone = asyncio.Event()
        first = asyncio.create_task(desk.serve("first", ticket("z"), gone))
        await settle()
        tasks = [asyncio.create_task(desk.serve(name, t, gone)) for name, t in order]
        await settle()
        assert desk.started == ["first"]
        assert (desk.admission.depth("interactive"), desk.admission.depth("batch")) == (4, 1)
        for capacity in range(2, 7):
            desk.capacity = capacity
            desk.admission.pump()
            await settle()
        assert desk.started == ["first", "a1", "c1", "a2", "a3", "b1"]
        gone.set()
        await asyncio.gather(first, *tasks)
        assert desk.admission.sequences == 0

    run(test())


def test_the_end_of_one_is_the_turn_of_the_next() -> None:
    async def test() -> None:
        desk = Desk()
        events = [asyncio.Event() for _ in range(3)]
        tasks = [
            asyncio.create_task(desk.serve(str(i), ticket(), gone)) for i, gone in enumerate(events)
        ]
        for number, gone in enumerate(events):
            await settle()
            assert desk.started == [str(i) for i in range(number + 1)]
            gone.set()
        await asyncio.gather(*tasks)

    run(test())


def test_a_wide_request_starts_with_what_there_is_and_goes_on_as_places_come() -> None:
    async def test() -> None:
        desk, gone = Desk(capacity=2), asyncio.Event()
        wide = asyncio.create_task(desk.serve_wide("wide", ticket(sequences=5), gone))
        await settle()
        assert desk.started == ["wide"] * 2
        assert desk.admission.depth("interactive") == 3
        desk.places["wide"][0].leave()
        await settle()
        assert desk.started == ["wide"] * 3
        gone.set()
        for number in range(1, 5):
            desk.places["wide"][number].leave()
            await settle()
        await wide
        assert desk.admission.sequences == 0

    run(test())


@pytest.mark.parametrize("client", ["a", "b"])
@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_one_that_holds_all_places_keeps_nobody_waiting(client: str, priority: Priority) -> None:
    async def test() -> None:
        desk, gone = Desk(capacity=4, most=8, max_wait_s=0.05), asyncio.Event()
        of = ticket("a", sequences=20, priority=priority)
        wide = asyncio.create_task(desk.serve_wide("wide", of, gone))
        await settle()
        assert desk.started == ["wide"] * 4
        single = asyncio.create_task(desk.serve("single", ticket(client), gone))
        await settle()
        assert desk.started == ["wide"] * 4 + ["single"]
        gone.set()
        await single
        wide.cancel()

    run(test())


def test_more_than_the_nodes_can_hold_is_not_given_out() -> None:
    async def test() -> None:
        desk, gone = Desk(capacity=4, most=5), asyncio.Event()
        wide = asyncio.create_task(desk.serve_wide("wide", ticket(sequences=20), gone))
        singles = [
            asyncio.create_task(desk.serve(f"single{i}", ticket("b"), gone)) for i in range(3)
        ]
        await settle()
        assert desk.started == ["wide"] * 4 + ["single0"]
        desk.places["wide"][0].leave()
        await settle()
        assert desk.started[5:] == ["single1"]
        for task in (wide, *singles):
            task.cancel()

    run(test())


def test_the_rest_of_a_wide_request_waits_as_long_as_it_takes() -> None:
    async def test() -> None:
        desk, gone = Desk(capacity=1, max_wait_s=0.01, node_wait_s=0.01), asyncio.Event()
        wide = asyncio.create_task(desk.serve_wide("wide", ticket(sequences=2), gone))
        await settle()
        with pytest.raises(OverloadedError):
            await desk.serve("late", ticket(), asyncio.Event())
        assert not wide.done()
        desk.places["wide"][0].leave()
        gone.set()
        await asyncio.wait_for(wide, 1)

    run(test())


def test_the_rest_of_a_wide_request_waits_while_its_first_sequences_still_run() -> None:
    async def test() -> None:
        # LOOK_AGAIN_S passes several times: long beside the time that a node is waited for.
        desk, gone = Desk(capacity=1, node_wait_s=0.01), asyncio.Event()
        wide = asyncio.create_task(desk.serve_wide("wide", ticket(sequences=2), gone))
        await settle()
        desk.capacity = None
        await asyncio.sleep(3 * LOOK_AGAIN_S)
        assert not wide.done()
        desk.capacity = 1
        desk.places["wide"][0].leave()
        gone.set()
        await asyncio.wait_for(wide, 1)

    run(test())


def test_the_rest_of_a_wide_request_fails_if_there_is_no_node_for_too_long() -> None:
    async def test() -> None:
        desk = Desk(capacity=1, node_wait_s=0.01)
        of = ticket(sequences=2)
        wide = asyncio.create_task(desk.serve_wide("wide", of, asyncio.Event()))
        await settle()
        desk.capacity = None
        desk.places["wide"][0].leave()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(wide, 5)
        assert desk.admission.sequences == 0

    run(test())


@pytest.mark.parametrize(
    ("fields", "first", "second", "error"),
    [
        ({"max_sequences": 3}, 2, 2, OverloadedError),
        ({"max_sequences": 3}, 2, 4, InvalidRequestError),
        ({"max_per_client": 3}, 2, 2, OverloadedError),
    ],
)
def test_more_than_the_limits_is_refused_at_once(
    fields: dict[str, int], first: int, second: int, error: type[RequestError]
) -> None:
    desk = Desk(**fields)
    with desk.admission.room_for(ticket(sequences=first)):
        with pytest.raises(error), desk.admission.room_for(ticket(sequences=second)):
            pass
        assert desk.admission.sequences == first
    assert desk.admission.sequences == 0


def test_one_that_fills_the_router_keeps_nobody_out() -> None:
    desk = Desk(max_sequences=100)
    with desk.admission.room_for(ticket("a", sequences=100)):
        with pytest.raises(OverloadedError), desk.admission.room_for(ticket("a")):
            pass
        with desk.admission.room_for(ticket("b", sequences=12)):
            with pytest.raises(OverloadedError), desk.admission.room_for(ticket("b")):
                pass
            with desk.admission.room_for(ticket("c")):
                assert desk.admission.sequences == 113


def test_the_limit_of_a_key_is_not_that_of_another() -> None:
    desk = Desk(max_per_client=1)
    with desk.admission.room_for(ticket("a")), desk.admission.room_for(ticket("b")):
        assert desk.admission.sequences == 2


@pytest.mark.parametrize(
    ("capacity", "limits", "deadline_s", "error"),
    [
        (1, {"max_wait_s": 0.01}, None, OverloadedError),
        (1, {}, 0.01, DeadlineError),
        (None, {"node_wait_s": 0.01}, None, UnavailableError),
    ],
)
def test_waiting_ends(
    capacity: int | None,
    limits: dict[str, float],
    deadline_s: float | None,
    error: type[RequestError],
) -> None:
    async def test() -> None:
        desk = Desk(capacity, **limits)
        async with asyncio.TaskGroup() as tasks:
            if capacity is not None:
                holder = tasks.create_task(desk.serve("holder", ticket(), asyncio.Event()))
                await settle()
            deadline = deadline_s and asyncio.get_running_loop().time() + deadline_s
            with pytest.raises(error):
                await desk.serve("late", ticket(deadline=deadline), asyncio.Event())
            assert desk.admission.depth("interactive") == 0
            if capacity is not None:
                holder.cancel()
        assert desk.admission.sequences == 0

    run(test())


def test_a_node_that_gets_on_with_loading_is_waited_for() -> None:
    async def test() -> None:
        loads = True
        desk = Desk(None, node_wait_s=0.01, max_wait_s=0.01, loads=lambda _: loads)
        waiting = asyncio.create_task(desk.serve("a", ticket(), asyncio.Event()))
        await asyncio.sleep(0.6)
        assert not waiting.done()
        loads = False
        with pytest.raises(UnavailableError):
            await waiting

    run(test())


def test_no_count_leaks_whenever_requests_give_up() -> None:
    async def one(desk: Desk, rng: random.Random) -> None:
        wanted = ticket(rng.choice("abc"), rng.randint(1, 3), rng.choice(["interactive", "batch"]))
        with suppress(RequestError, TimeoutError):
            async with asyncio.timeout(rng.random() * 0.02):
                with desk.admission.room_for(wanted):
                    async with desk.admission.turn(wanted) as turn:
                        for _ in range(wanted.sequences):
                            place = await turn.next()
                            place.computed(rng.randint(0, 50))
                            await asyncio.sleep(rng.random() * 0.01)
                            if rng.random() < 0.5:
                                place.leave()

    async def test() -> None:
        rng = random.Random(1)
        desk = Desk(capacity=4, max_sequences=30, max_per_client=20)
        for _ in range(30):
            await asyncio.gather(*(one(desk, rng) for _ in range(20)))
        assert desk.admission.sequences == 0
        gone = asyncio.Event()
        tasks = [asyncio.create_task(desk.serve(str(i), ticket(), gone)) for i in range(4)]
        await settle()
        assert len(desk.started) == 4
        gone.set()
        await asyncio.gather(*tasks)

    run(test())
