"""Nodes that break the protocol, keep requests or lie, with an honest one beside."""

from __future__ import annotations

import itertools
import random
import time
from functools import partial
from typing import Any

import msgspec
import pytest

from mlxfleet.bench.rogue.mutations import mutated
from mlxfleet.common.errors import GenerationError
from mlxfleet.common.messages import (
    Finish,
    KvEvents,
    KvSnapshot,
    Leaving,
    NodeToRouter,
    Rejected,
    StreamBroken,
    Text,
    TokenText,
    TokenTextLogprobs,
)
from mlxfleet.router.breaker import BreakerState
from mlxfleet.router.dispatcher import MAX_RETURNS
from mlxfleet.router.fences import DOUBTS_TO_FENCE
from mlxfleet.router.health import State
from mlxfleet.router.node_patience import LEAST_S
from mlxfleet.router.nodes import LINK
from mlxfleet.router.sequences import Sequence
from tests.router.test_dispatcher import Bench, FakeNode, run, until, value

ROGUE = "rogue"


async def on_rogue(bench: Bench, rid: str = "a") -> tuple[FakeNode, Sequence]:
    """A sequence on a rogue, which was there first, and then an honest node."""
    bench.node.channel.close()
    nodes = bench.dispatcher.nodes
    await until(lambda: _gone(bench), "the bench's node to be gone")
    rogue = await bench.add_node(ROGUE)
    (sequence,) = await _start(bench, rid)
    assert sequence.node == ROGUE
    await bench.add_node("honest")
    assert nodes.state("honest") is State.READY
    return rogue, sequence


def _gone(bench: Bench) -> bool:
    bench.dispatcher.nodes.look(time.monotonic() + 1)
    return bench.dispatcher.nodes.state("n0") is State.DEAD


async def _start(bench: Bench, *rids: str) -> list[Sequence]:
    bench._peers.remove(bench.node)
    try:
        return await bench.start(*rids)
    finally:
        bench._peers.append(bench.node)


async def moved(bench: Bench, sequence: Sequence) -> None:
    """Wait until a sequence is on the honest node."""

    def there() -> bool:
        bench.dispatcher.move_stranded(time.monotonic())
        return sequence.node == "honest"

    await until(there, "the sequence on the honest node")


def _opened(bench: Bench, sequence: Sequence) -> bool:
    return bench.detokenizer.attempts.get(sequence.rid) == sequence.attempt


def state(bench: Bench) -> State:
    return bench.dispatcher.nodes.state(ROGUE)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"",
        msgspec.msgpack.encode({"type": "kv_events", "sequence": -1}),
        msgspec.msgpack.encode(Rejected("a", "1", "failed", "x" * 501)),
    ],
)
def test_a_malformed_message_fences_its_node(frame: bytes) -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.channel.socket.send(frame)
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, sequence)
        assert "malformed" in bench.dispatcher.nodes.fence_of(ROGUE)
        assert ROGUE not in {s.name for s in bench.dispatcher.nodes.ready()}
        assert value(bench.metrics.registry, "mlxfleet_node_fences_total") == 1

    run(test)


@pytest.mark.parametrize(
    "field", ["decode_step_s", "prefill_tokens_per_s", "slowdown", "sequence_s", "busy_s"]
)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_no_number_that_is_none_gets_in(field: str, number: float) -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.channel.send(rogue.heartbeat(**{field: number}))
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, sequence)

    run(test)


def test_a_new_run_of_a_fenced_node_stays_fenced_until_an_operator_lets_it_in() -> None:
    async def test(bench: Bench) -> None:
        rogue, _ = await on_rogue(bench)
        bench.dispatcher.nodes.breach(ROGUE, "malformed", "why")
        await rogue.restart()
        assert state(bench) is State.FENCED
        bench.dispatcher.nodes.drain(ROGUE, draining=False)
        assert state(bench) is State.READY

    run(test)


def test_nothing_of_a_fenced_node_counts() -> None:
    async def test(bench: Bench) -> None:
        rogue, _ = await on_rogue(bench)
        bench.dispatcher.nodes.breach(ROGUE, "malformed", "why")
        bench.dispatcher.look(time.monotonic())
        rogue.tell(1, [1, 2, 3])
        await rogue.greet(kv_sequence=1)
        assert bench.routing.index.blocks_of(ROGUE) == 0

    run(test)


def test_mutated_messages_harm_nobody_else() -> None:
    messages: list[Any] = [
        KvEvents(sequence=1, cleared=False, removed=[1], stored=[2]),
        KvSnapshot(sequence=1, first=True, last=True, stored=[2]),
        Rejected("a", "1", "queue_full", "why"),
    ]

    async def test(bench: Bench) -> None:
        rng = random.Random(1)
        (sequence,) = await bench.start("a")
        rogue = await bench.add_node(ROGUE)
        rogue.info = msgspec.structs.replace(rogue.info, instance="of-its-own")
        for message in itertools.islice(itertools.cycle([*messages, rogue.heartbeat()]), 150):
            frame, _ = mutated(message, rng)
            if len(frame) >= LINK.cut_off_bytes:
                continue
            rogue.channel.socket.send(frame)
            if not decodes(frame):
                await until(lambda: state(bench) is State.FENCED, "the fence")
                bench.dispatcher.nodes.drain(ROGUE, draining=False)
            bench.dispatcher.look(time.monotonic())
        await bench.node.greet()
        bench.detokenizer.text("a", 0, [7], 0, "x", finish="length")
        await until(lambda: sequence.ended, "the end")
        assert (sequence.error, sequence.output_ids) == (None, [7])

    run(test)


def decodes(frame: bytes) -> bool:
    try:
        msgspec.msgpack.decode(frame, type=NodeToRouter)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def test_a_node_that_knows_nothing_is_not_asked_without_end() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.reject("a", "unknown")
        await until(lambda: sequence.attempt != "1", "the second attempt")
        await rogue.greet()
        rogue.reject("a", "unknown")
        await until(lambda: not sequence.node, "that it is taken away")
        await moved(bench, sequence)
        assert len([m for m in rogue.work if getattr(m, "prompt_ids", None)]) == 2

    run(test)


def test_a_node_that_is_always_full_is_fenced() -> None:
    async def test(bench: Bench) -> None:
        rogue, first = await on_rogue(bench, "r0")
        for number in range(DOUBTS_TO_FENCE):
            rogue.reject(first.rid, "queue_full")
            await until(lambda: not first.node, "the refusal")
            if number < DOUBTS_TO_FENCE - 1:
                bench.dispatcher._send_to(first, ROGUE)
                await rogue.greet()
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, first)

    run(test)


def test_a_node_that_is_full_by_its_own_figures_is_not_held_to_lie() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        await rogue.greet(max_running=0, max_queue=0)
        for _ in range(DOUBTS_TO_FENCE + 1):
            rogue.reject("a", "queue_full")
            await until(lambda: not sequence.node, "the refusal")
            bench.dispatcher._send_to(sequence, ROGUE)
            await rogue.greet(max_running=0, max_queue=0)
        assert state(bench) is State.READY

    run(test)


@pytest.mark.parametrize("code", ["too_long", "failed", "not_finite"])
def test_what_one_node_refuses_another_gets(code: str) -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.reject("a", code)
        await until(lambda: not sequence.node, "the refusal")
        await moved(bench, sequence)

    run(test)


def test_what_a_node_says_of_its_worker_does_not_end_a_request() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        await rogue.greet(worker_restarts=3)
        rogue.reject("a", "failed")
        await until(lambda: not sequence.node, "the refusal")
        await moved(bench, sequence)

    run(test)


def test_a_node_that_gives_up_what_another_can_compute_is_fenced() -> None:
    async def test(bench: Bench) -> None:
        rogue, _ = await on_rogue(bench)
        nodes = bench.dispatcher.nodes
        for rid in ("b", "c", "d")[:DOUBTS_TO_FENCE]:
            nodes.drain("honest", True)
            (sequence,) = await _start(bench, rid)
            assert sequence.node == ROGUE
            nodes.drain("honest", False)
            rogue.reject(rid, "not_finite")
            await moved(bench, sequence)
            assert state(bench) is not State.FENCED
            await until(partial(_opened, bench, sequence), "the stream")
            bench.detokenizer.text(rid, 0, [1], 0, "x")
        await until(lambda: state(bench) is State.FENCED, "the fence")

    run(test)


def test_a_new_run_on_an_old_connection_is_a_breach() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.run += 1
        rogue.channel.send(rogue.heartbeat())
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, sequence)

    run(test)


def test_a_node_that_starts_again_and_again_loses_its_sequences() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        for _ in range(MAX_RETURNS):
            await rogue.restart()
            assert sequence.node == ROGUE
        await rogue.restart()
        await moved(bench, sequence)

    run(test)


def test_a_model_that_changes_while_it_runs_is_a_breach() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        larger = msgspec.structs.replace(rogue.model, weights_bytes=rogue.model.weights_bytes + 1)
        rogue.channel.send(rogue.heartbeat(model=larger))
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, sequence)

    run(test)


def test_a_node_that_has_left_does_not_go_on() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        rogue.channel.send(Leaving())
        await until(lambda: state(bench) is State.DEAD, "its end")
        await rogue.greet()
        assert state(bench) is State.DEAD
        await moved(bench, sequence)

    run(test)


def look_after(bench: Bench, sequence: Sequence, seconds: float) -> None:
    """Look at the progress of a sequence that was heard of so many seconds ago."""
    sequence.trials.heard -= seconds
    bench.dispatcher._progress.check([sequence], time.monotonic())


def test_a_node_that_boasts_and_swallows_is_fenced() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        await rogue.greet(prefill_tokens_per_s=1e9)
        look_after(bench, sequence, LEAST_S + 0.1)
        assert state(bench) is State.FENCED
        await moved(bench, sequence)

    run(test)


def test_a_node_that_is_slow_by_its_own_figures_has_time() -> None:
    async def test(bench: Bench) -> None:
        rogue, sequence = await on_rogue(bench)
        await rogue.greet(prefill_tokens_per_s=10.0)
        look_after(bench, sequence, LEAST_S + 5.0)
        assert (state(bench), sequence.node) == (State.READY, ROGUE)
        look_after(bench, sequence, 20.0)
        assert state(bench) is State.FENCED

    run(test)


def test_a_node_without_another_keeps_what_it_has() -> None:
    async def test(bench: Bench) -> None:
        (sequence,) = await bench.start("a")
        look_after(bench, sequence, 1000.0)
        assert bench.dispatcher.nodes.state("n0") is State.READY
        assert sequence.node == "n0"

    run(test)


def test_tokens_that_a_node_may_not_send_fence_it() -> None:
    async def test(bench: Bench) -> None:
        _, sequence = await on_rogue(bench)
        bench.detokenizer.channel.send(StreamBroken("a", sequence.attempt, "ids from -1 to -1"))
        await until(lambda: state(bench) is State.FENCED, "the fence")
        await moved(bench, sequence)

    run(test)


def test_nan_moves_a_request_and_is_given_up_if_it_comes_again() -> None:
    async def test(bench: Bench) -> None:
        _, sequence = await on_rogue(bench)
        bench.detokenizer.channel.send(StreamBroken("a", sequence.attempt, "NaN", sick=True))
        await until(lambda: sequence.node != ROGUE, "the move")
        await moved(bench, sequence)
        bench.detokenizer.channel.send(StreamBroken("a", sequence.attempt, "NaN", sick=True))
        await until(lambda: sequence.ended, "the end")
        assert State.FENCED not in (state(bench), bench.dispatcher.nodes.state("honest"))

    run(test)


def test_gaps_without_end_are_taken_away() -> None:
    async def test(bench: Bench) -> None:
        _, sequence = await on_rogue(bench)
        for _ in range(20):
            bench.detokenizer.lose("a")
        await until(lambda: sequence.node != ROGUE, "the move")
        assert bench.recoveries < 20
        await moved(bench, sequence)

    run(test)


def test_more_cached_than_there_is_is_clipped_and_held_against_the_node() -> None:
    async def test(bench: Bench) -> None:
        _, sequence = await on_rogue(bench)
        bench.detokenizer.text("a", 0, [7], 0, "x", finish="length", cached_tokens=10**6)
        await until(lambda: sequence.ended, "the end")
        assert sequence.cached_tokens == len(sequence.prompt_ids)
        assert state(bench) is State.FENCED

    run(test)


def test_an_entry_that_cannot_be_taken_in_ends_only_its_own_request() -> None:
    async def test(bench: Bench) -> None:
        one, other = await bench.start("a", "b")
        broken: Any = object()
        one.pending.logprobs = broken
        logprobs = [TokenTextLogprobs(TokenText("x", [120], -1.0), [])]
        bench.detokenizer.channel.send(
            Text(
                rids=["a", "b"],
                attempts=[one.attempt, other.attempt],
                starts=[0, 0],
                ids=[[1], [1]],
                offsets=[0, 0],
                texts=["x", "x"],
                finish={1: Finish("length")},
                logprobs={0: logprobs, 1: logprobs},
            )
        )
        await until(lambda: other.ended, "the other's end")
        assert isinstance(one.error, GenerationError)
        assert other.error is None

    run(test)


def test_a_message_that_cannot_be_handled_is_one_message_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(bench: Bench) -> None:
        def fail(*_: object) -> bool:
            raise ZeroDivisionError

        monkeypatch.setattr(bench.routing, "on_cache", fail)
        bench.node.tell(1, [1])
        await bench.node.greet()
        assert bench.dispatcher.nodes.state("n0") is State.READY
        bench.node.tell(2, [1])
        bench.node.tell(3, [1])
        await bench.node.greet()
        assert bench.dispatcher.nodes.state("n0") is State.FENCED

    run(test)


def test_a_flood_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        for number in range(8000):
            bench.node.channel.send(Rejected(f"made-up-{number}", "1", "failed", ""))
        await until(lambda: bench.dispatcher.nodes.state("n0") is State.FENCED, "the fence")
        assert bench.dispatcher.nodes.breaker_state("n0") is BreakerState.CLOSED

    run(test)
