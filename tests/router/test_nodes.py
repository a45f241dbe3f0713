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
from mlxfleet.common.messages import Leaving, NodeInfo, Refused, Welcome
from mlxfleet.router import claims, nodes
from mlxfleet.router.breaker import FAULTS_TO_OPEN, BreakerState
from mlxfleet.router.health import State
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
        assert bench.dispatcher.nodes.model_info("x") is None
        assert bench.dispatcher.nodes.model_info("y") == MODEL
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
            assert str(sequence.error) == "NaN"
        assert bench.dispatcher.nodes.breaker_state("n0") is BreakerState.CLOSED

    run(test)
