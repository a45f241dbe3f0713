"""Sequences of one HTTP request in the router: where they go, and how their places are left."""

from __future__ import annotations

import asyncio

import pytest

from mlxfleet.common.errors import DeadlineError
from mlxfleet.common.messages import Generate, Party, Sampling, Tokenized
from mlxfleet.router.admission import Admission, Ticket
from mlxfleet.router.generation import Generation
from mlxfleet.router.parameters import CompletionRequest
from mlxfleet.router.places import Capacity, Line, Place
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.wakeup import Wakeup
from tests.router.test_dispatcher import Bench, run, until

PARTY = Party(client="a", request="wide", weight=2.0, priority="batch")


def sequence(rid: str, prompt: list[int], place: Place | None = None) -> Sequence:
    return Sequence(
        rid=rid,
        prompt_ids=prompt,
        sampling=Sampling(seed=1, max_tokens=50),
        stop=[],
        wakeup=Wakeup(),
        party=PARTY,
        siblings=True,
        place=place,
    )


def given(line: Line, count: int) -> list[Place]:
    """Places of one request, as far as there are some."""
    return line.join(PARTY, count)


def test_a_sibling_that_starts_later_goes_to_the_node_of_the_first() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_node("n1")
        prompt = list(range(20))
        first = sequence("first", prompt)
        await bench.dispatcher.start([first])
        # Now the other node has less to do.
        later = sequence("later", prompt)
        await bench.dispatcher.start([later], first)
        assert later.node == first.node

    run(test)


def test_a_sibling_goes_elsewhere_when_the_node_of_the_first_takes_no_more() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_node("n1")
        first = sequence("first", list(range(20)))
        await bench.dispatcher.start([first])
        bench.dispatcher.nodes.drain(first.node, True)
        later = sequence("later", first.prompt_ids)
        await bench.dispatcher.start([later], first)
        assert later.node not in ("", first.node)

    run(test)


def test_nodes_are_told_on_whose_behalf_a_sequence_runs() -> None:
    async def test(bench: Bench) -> None:
        await bench.dispatcher.start([sequence("a", list(range(20)))])
        await bench.settle()
        (message,) = [m for m in bench.node.received if isinstance(m, Generate)]
        assert (message.party, message.siblings) == (PARTY, True)

    run(test)


@pytest.mark.parametrize("fails", [True, False])
def test_a_place_is_free_as_soon_as_its_sequence_has_ended(fails: bool) -> None:
    async def test(bench: Bench) -> None:
        line = Line(lambda: Capacity(1, 1))
        first, second = given(line, 2)
        running = sequence("a", list(range(20)), first)
        await bench.dispatcher.start([running])
        await bench.settle()
        assert not second.given.done()
        if fails:
            running.fail(DeadlineError("too late"))
        else:
            bench.detokenizer.text("a", 0, [1], 0, "x", finish="stop")
        await until(second.given.done, "the place")

    run(test)


def test_what_is_computed_is_charged() -> None:
    """The client with the prompt that was computed is not the next."""

    async def test(bench: Bench) -> None:
        line = Line(lambda: Capacity(2, 2))
        wide = given(line, 2)
        other = line.join(Party(client="b", request="r", priority="batch"), 2)
        more = given(line, 2)
        await bench.dispatcher.start([sequence("a", list(range(140)), wide[0])])
        wide[1].leave()
        assert other[0].given.done()
        wide[0].leave()
        assert other[1].given.done()
        assert not any(place.given.done() for place in more)

    run(test)


@pytest.mark.parametrize(
    ("nodes", "capacity"),
    [
        ([(32, 256)], Capacity(64, 288)),
        ([(32, 256), (32, 256)], Capacity(80, 576)),
        ([(1, 1)], Capacity(2, 2)),
        ([(8, 8)], Capacity(12, 16)),
    ],
)
def test_nodes_queue_a_little_and_leave_room_for_others(
    nodes: list[tuple[int, int]], capacity: Capacity
) -> None:
    async def test(bench: Bench) -> None:
        assert bench.dispatcher.nodes.capacity("") is None
        for number, (max_running, max_queue) in enumerate(nodes):
            await bench.add_node(f"n{number}", max_running=max_running, max_queue=max_queue)
        assert bench.dispatcher.nodes.capacity("") == capacity

    run(test, set_up=False)


def test_a_burst_of_a_thousand_requests_is_served_to_its_end() -> None:

    async def test() -> None:
        admission = Admission(
            ["m"],
            lambda _: Capacity(1, 2000),
            max_sequences=2000,
            max_per_client=None,
            max_wait_s=60,
            node_wait_s=60,
        )

        async def ask() -> None:
            async with admission.turn(Ticket(client="a", model="m", sequences=1)):
                pass

        await asyncio.gather(*(ask() for _ in range(1000)))
        assert admission.depth("interactive") == 0

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_request_that_is_given_up_starts_no_more_sequences() -> None:
    """Also when the client goes away between two chunks, while nobody asks for the next."""

    async def test(bench: Bench) -> None:
        capacity = Capacity(1, 1)
        admission = Admission(
            [""],
            lambda _: capacity,
            max_sequences=10,
            max_per_client=None,
            max_wait_s=60,
            node_wait_s=60,
        )
        ticket = Ticket(client="a", model="", sequences=2)
        tokenized = Tokenized("t", [list(range(20))], [[]])
        request = CompletionRequest(prompt="x", n=2)
        sampling = Sampling(seed=1, max_tokens=50)
        generation = Generation(bench.dispatcher, tokenized, sampling, request, "")
        async with admission.turn(ticket) as turn:
            generation.starts_in(turn)
            with generation.released_at_end():
                deltas = generation.deltas()
                asking = asyncio.ensure_future(anext(deltas))
                await until(lambda: bench.dispatcher.loads().total() == 1, "the first")
                bench.detokenizer.text(f"{generation.rid}-0", 0, [1], 0, "x")
                await asking
                capacity = Capacity(2, 2)
                admission.pump()
        await bench.settle()
        assert bench.dispatcher.loads().total() == 0
        await deltas.aclose()

    run(test)
