"""Which nodes are let in, and which model's requests they get."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec
import pytest

from mlxfleet.common.config import ServedModel
from mlxfleet.common.errors import GenerationError, UnavailableError
from mlxfleet.common.liveness import HUNG_AFTER_S
from mlxfleet.common.messages import Leaving, LoadProgress, NodeInfo, Refused, Welcome
from mlxfleet.router import claims, nodes
from mlxfleet.router.breaker import FAULTS_TO_OPEN, BreakerState
from mlxfleet.router.health import State
from mlxfleet.router.limits import Limits
from tests.router.test_dispatcher import MODEL, Bench, FakeNode, run, until

MODELS = (
    ServedModel(name="x", source="x", tokenizer_hash="1" * 64),
    ServedModel(name="y", source="y", tokenizer_hash="2" * 64),
)
X = NodeInfo(model="x", tokenizer_hash="1" * 64)
Y = NodeInfo(model="y", tokenizer_hash="2" * 64)


def refusals(node: FakeNode) -> list[str]:
    return [message.reason for message in node.received if isinstance(message, Refused)]


def refused(bench: Bench, reason: str) -> float:
    registry = bench.metrics.registry
    return registry.get_sample_value("mlxfleet_refused_nodes_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (NodeInfo(model="z", tokenizer_hash="1" * 64), "'z'"),
        (NodeInfo(model="x", tokenizer_hash="2" * 64), "tokenizer"),
        (NodeInfo(model="x"), "tokenizer"),
        (NodeInfo(), "''"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(info: NodeInfo, said: str) -> None:
    async def test(bench: Bench) -> None:
        node = await bench.add_node("n", info=info)
        assert said in refusals(node)[0]
        assert bench.dispatcher.nodes.ready() == []
        assert refused(bench, "model") == 1

    run(test, set_up=False, models=MODELS)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "x" * 64])
def test_a_name_that_cannot_be_a_label_is_refused(name: str) -> None:
    async def test(bench: Bench) -> None:
        assert "name" in refusals(await bench.add_node(name, info=X))[0]

    run(test, set_up=False, models=MODELS)


def test_requests_go_to_nodes_of_their_model() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("dx", model="x")
        await bench.add_detokenizer("dy", model="y")
        await bench.add_node("nx", info=X)
        node = await bench.add_node("ny", info=Y)
        (on_y,) = await bench.start("a", model="y")
        assert (on_y.node, on_y.detokenizer) == ("ny", "dy")
        assert [message.rid for message in node.work] == ["a"]
        (on_x,) = await bench.start("b", model="x")
        assert (on_x.node, on_x.detokenizer) == ("nx", "dx")

    run(test, set_up=False, models=MODELS)


def test_nodes_are_told_the_detokenizers_of_their_model() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("dx", model="x")
        await bench.add_detokenizer("dy", model="y")
        node = await bench.add_node("ny", info=Y)
        (welcome,) = node.received
        assert isinstance(welcome, Welcome)
        assert list(welcome.detokenizers) == ["dy"]

    run(test, set_up=False, models=MODELS)


def test_sequences_do_not_move_to_another_model() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("dx", model="x")
        await bench.add_node("nx", info=X)
        await bench.add_node("ny", info=Y)
        (sequence,) = await bench.start("a", model="x")
        bench.dispatcher.nodes.look(time.monotonic() + 2 * HUNG_AFTER_S)
        bench.dispatcher.move_stranded(0.0)
        assert sequence.node == "nx"
        other = await bench.add_node("nx2", info=X)
        bench.dispatcher.move_stranded(0.0)
        await bench.settle()
        assert sequence.node == "nx2"
        assert [message.rid for message in other.work] == ["a"]

    run(test, set_up=False, models=MODELS)


def test_a_model_without_nodes_waits_and_says_so() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("dx", model="x")
        await bench.add_node("ny", info=Y)
        assert bench.dispatcher.nodes.limits("x", 1) is None
        assert bench.dispatcher.nodes.limits("y", 1) == Limits.of(MODEL)
        with pytest.raises(UnavailableError):
            await bench.start("a", model="x")

    run(test, set_up=False, node_wait_s=0.05, models=MODELS)


def test_a_second_node_of_a_name_is_refused() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.add_node("n", info=msgspec.structs.replace(X, instance="1"))
        second = bench.new_node("n", msgspec.structs.replace(X, instance="2"), run=7)
        while not second.received:
            first.channel.send(first.heartbeat())
            second.channel.send(second.heartbeat())
            await asyncio.sleep(0.05)
        assert "is here already" in refusals(second)[0]
        assert refused(bench, "name") == 1
        assert not refusals(first)

    run(test, set_up=False, models=MODELS)


def test_a_node_takes_the_name_of_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TAKE_AFTER_S", 0.1)

    async def test(bench: Bench) -> None:
        first = await bench.add_node("n", info=msgspec.structs.replace(X, instance="1"))
        assert not refusals(first)
        second = bench.new_node("n", msgspec.structs.replace(X, instance="2"), run=7)
        while not second.received:
            second.channel.send(second.heartbeat())
            await asyncio.sleep(0.02)
        assert isinstance(second.received[0], Welcome)

    run(test, set_up=False, models=MODELS)


def test_a_restart_in_the_same_run_needs_no_waiting() -> None:
    async def test(bench: Bench) -> None:
        node = await bench.add_node("n", info=X)
        await node.greet()
        await node.restart()
        assert not refusals(node)

    run(test, set_up=False, models=MODELS)


def test_the_number_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_NODES", 2)

    async def test(bench: Bench) -> None:
        for name in ("a", "b"):
            assert not refusals(await bench.add_node(name, info=X))
        assert "nodes are here" in refusals(await bench.add_node("c", info=X))[0]
        bench.dispatcher.nodes.pool.peers["a"].last_seen -= 1000
        assert not refusals(await bench.add_node("d", info=X))
        assert sorted(bench.dispatcher.nodes.status) == ["b", "d"]

    run(test, set_up=False, models=MODELS)


def test_a_node_that_leaves_is_no_trouble_and_its_requests_go_on_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(bench: Bench) -> None:
        (sequence,) = await bench.start("a")
        await bench.add_node("n1")
        leaving = bench.node
        leaving.channel.send(Leaving())
        await until(lambda: bench.dispatcher.nodes.state(leaving.name) is State.DEAD, "its end")
        assert not bench.dispatcher.nodes.breakers[leaving.name]._faults
        bench.dispatcher.move_stranded(time.monotonic())
        assert sequence.node not in ("", leaving.name)
        await leaving.restart()
        assert bench.dispatcher.nodes.state(leaving.name) is State.READY

    caplog.set_level(logging.WARNING)
    run(test)
    assert not [m for m in caplog.messages if "is dead" in m]


def test_nodes_are_told_that_the_router_ends() -> None:
    async def test(bench: Bench) -> None:
        node = await bench.add_node("n9")
        bench.dispatcher.nodes.close()
        await until(lambda: node.work == [Leaving()], "the farewell")

    run(test)


def test_a_request_without_finite_logits_is_not_the_nodes_fault() -> None:
    async def test(bench: Bench) -> None:
        for number in range(FAULTS_TO_OPEN + 1):
            (sequence,) = await bench.start(f"r{number}")
            bench.node.reject(sequence.rid, "not_finite", "NaN")
            await until(lambda s=sequence: s.error, "the error")
            assert isinstance(sequence.error, GenerationError)
            assert "not numbers" in str(sequence.error)
        assert bench.dispatcher.nodes.breaker_state("n0") is BreakerState.CLOSED

    run(test)


# --- what fits where -----------------------------------------------------------------------------

SMALL = msgspec.structs.replace(MODEL, context_length=40)
# What `Bench.start` asks for.
TOKENS = 70


def test_a_sequence_goes_where_it_fits() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d")
        (await bench.add_node("a", model=SMALL)).model = SMALL
        await bench.add_node("big")
        for rid in "123456":
            (sequence,) = await bench.start(rid)
            assert sequence.node == "big"
            bench.dispatcher.release(sequence)

    run(test, set_up=False)


def test_memory_counts_like_context() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d")
        model = msgspec.structs.replace(MODEL, kv_budget_bytes=60)
        (await bench.add_node("a", model=model)).model = model
        nodes = bench.dispatcher.nodes
        assert nodes.ready("", 60)
        assert not nodes.ready("", 61)
        with pytest.raises(UnavailableError):
            await bench.start("1")

    run(test, set_up=False, node_wait_s=0.05)


def test_a_sequence_moves_only_where_it_fits() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d")
        big = await bench.add_node("big")
        (sequence,) = await bench.start("1")
        small = await bench.add_node("small", model=SMALL)
        await big.greet(worker="dead")
        bench.dispatcher.move_stranded(time.monotonic())
        await small.greet(model=SMALL)
        assert (sequence.node, small.work) == ("big", [])
        other = await bench.add_node("other")
        bench.dispatcher.move_stranded(time.monotonic())
        assert sequence.node == "other"
        await other.greet()
        assert [message.rid for message in other.work] == ["1"]

    run(test, set_up=False)


def test_one_that_comes_back_smaller_hands_over_what_it_cannot_take() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d")
        first = await bench.add_node("first")
        (sequence,) = await bench.start("1")
        second = await bench.add_node("second")
        first.reject("1", "too_long")
        await first.greet(model=SMALL)
        bench.dispatcher.move_stranded(time.monotonic())
        await second.greet()
        assert sequence.node == "second"
        assert not sequence.ended

    run(test, set_up=False)


def test_the_limits_are_those_of_the_largest_that_lives() -> None:
    async def test(bench: Bench) -> None:
        nodes = bench.dispatcher.nodes
        assert nodes.limits("", 1) is None
        big = await bench.add_node("big")
        small = await bench.add_node("small", model=SMALL)
        assert nodes.limits("", 10) == Limits.of(MODEL)
        assert nodes.limits("", 10_000) == Limits.of(MODEL), "nobody could take that"
        await big.greet(worker="dead")
        assert nodes.limits("", 40) == Limits.of(SMALL)
        assert nodes.limits("", 41) is None, "the one that could is lost, so it is waited for"
        assert nodes.limits("", 10_000) == Limits.of(SMALL)
        assert nodes.longest_context("") == MODEL.context_length
        await small.greet(worker="dead", model=SMALL)
        assert nodes.limits("", 41) == Limits.of(MODEL), "the queue waits for it"

    run(test, set_up=False)


def test_another_run_of_a_node_has_its_own_limits() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_node("small", model=SMALL)
        node = await bench.add_node("n", info=NodeInfo(instance="1"))
        await node.restart(worker="loading", model=None)
        assert bench.dispatcher.nodes.limits("", 41) is None
        node.channel.close()
        bench.dispatcher.nodes.pool.peers["n"].last_seen -= 1000
        other = bench.new_node("n", NodeInfo(instance="2"), run=9)
        await other.greet(worker="loading", model=None)
        assert bench.dispatcher.nodes.limits("", 41) is None, "it may be as large as before"
        await other.greet(model=SMALL)
        assert bench.dispatcher.nodes.limits("", 41) == Limits.of(SMALL)

    run(test, set_up=False)


def test_one_that_loads_for_the_first_time_is_waited_for_by_what_it_may_take() -> None:
    async def test(bench: Bench) -> None:
        nodes = bench.dispatcher.nodes
        await bench.add_node("small", model=SMALL)
        node = await bench.add_node("n", worker="loading", model=None)
        assert nodes.limits("", 41) is None, "its worker has not said anything yet"
        starting = LoadProgress(stage="starting")
        await node.greet(worker="loading", model=None, loading=starting)
        assert nodes.limits("", 41) is None
        assert nodes.longest_context("") > 1_000_000
        assert nodes.loads("", 41)
        known = LoadProgress(stage="reading", context_length=60)
        await node.greet(worker="loading", model=None, loading=known)
        assert nodes.limits("", 60) is None
        assert nodes.limits("", 61) == Limits.of(SMALL)
        assert nodes.longest_context("") == 60
        assert nodes.loads("", 60)
        assert not nodes.loads("", 61)
        assert nodes.loading() == {"n": known}

    run(test, set_up=False)


def test_a_lost_sequence_waits_while_a_node_gets_on_with_loading() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d")
        node = await bench.add_node("n")
        (sequence,) = await bench.start("1")
        for second in range(5):
            progress = LoadProgress(stage="reading", done=second)
            await node.greet(worker="loading", loading=progress)
            bench.dispatcher.move_stranded(time.monotonic() + 100 * second)
            assert not sequence.ended
        await node.greet(worker="dead")
        bench.dispatcher.move_stranded(time.monotonic() + 500)
        assert isinstance(sequence.error, UnavailableError)

    run(test, set_up=False, node_wait_s=30.0)
