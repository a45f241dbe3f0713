"""Sequences in flight: started, followed, recovered and released, with fake processes behind
real sockets."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Sequence as Many
from functools import partial
from typing import Any

import msgspec
import pytest
import zmq
from prometheus_client import CollectorRegistry

from mlxfleet.common import channels
from mlxfleet.common.config import ServedModel
from mlxfleet.common.errors import (
    GenerationError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from mlxfleet.common.liveness import PROBE_AFTER_S
from mlxfleet.common.messages import (
    PROTOCOL_VERSION,
    CloseStream,
    Finish,
    FinishReason,
    Generate,
    Hello,
    KvEvents,
    KvSnapshot,
    Leaving,
    ModelInfo,
    NodeInfo,
    NodeStatus,
    OpenStream,
    Refused,
    Rejected,
    Release,
    Resend,
    RouterToDetokenizer,
    RouterToNode,
    Sampling,
    SendKvSnapshot,
    StreamLost,
    Text,
    TokenText,
    TokenTextLogprobs,
    Welcome,
)
from mlxfleet.router import dispatcher as dispatcher_module
from mlxfleet.router.breaker import FAULTS_TO_OPEN
from mlxfleet.router.dispatcher import PROMPT_TAIL_TOKENS, Dispatcher
from mlxfleet.router.health import State
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import MAX_FAILED_WORKERS, Delta, Sequence
from mlxfleet.router.wakeup import Wakeup
from tests.router.reports import node_status

DEADLINE_S = 5.0
STALE = "stale"
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


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.001)


class FakePeer:
    """A node or a detokenizer: keeps what it is sent, and can come back as a new process."""

    receives: Any = None

    def __init__(self, context: zmq.Context[Any], address: str, name: str, run: int = 0) -> None:
        self.name = name
        self.run = run
        self._context, self._address = context, address
        self._connect()

    def _connect(self) -> None:
        self.run += 1
        self.received: list[Any] = []
        self.channel: channels.Channel[Any, Any] = channels.client(
            self._context, self.receives, self._address, f"{self.name}:{self.run}"
        )
        # The attempt that it was given last of each sequence; a restart does not change it.
        self.attempts: dict[str, str] = getattr(self, "attempts", {})
        self.channel.attach(partial(self._take, self.received))

    def _take(self, received: list[Any], _: bytes, message: Any) -> None:
        received.append(message)
        if isinstance(message, Generate | OpenStream):
            self.attempts[message.rid] = message.attempt

    @property
    def work(self) -> list[Any]:
        """What it was sent, but for the answers to its heartbeats."""
        return [m for m in self.received if not isinstance(m, Welcome | Refused)]

    def heartbeat(self, **fields: Any) -> Any:
        """Its heartbeat."""
        raise NotImplementedError

    async def greet(self, **fields: Any) -> None:
        """Send a heartbeat, and wait for the answer: then all that was sent before has come."""
        before = len(self.received) - len(self.work)
        self.channel.send(self.heartbeat(**fields))
        await until(lambda: len(self.received) - len(self.work) > before, "an answer")

    async def restart(self, **fields: Any) -> None:
        """Come back as a new process."""
        self.channel.close()
        self._connect()
        await self.greet(**fields)


class FakeNode(FakePeer):
    """A compute node."""

    receives = RouterToNode
    info = NodeInfo()
    model = MODEL

    def heartbeat(self, **fields: Any) -> NodeStatus:
        """Its report."""
        incarnation = f"{self.name}-{self.run}"
        given = {
            "name": self.name,
            "incarnation": incarnation,
            "model": self.model,
            "info": self.info,
        }
        return node_status(**{**given, **fields})

    def tell(self, sequence: int, stored: list[int]) -> None:
        """Say what has come into its cache."""
        self.channel.send(KvEvents(sequence=sequence, cleared=False, removed=[], stored=stored))

    def reject(self, rid: str, code: Any, message: str = "because") -> None:
        """Refuse a request."""
        attempt = self.attempts.get(rid, STALE)
        self.channel.send(Rejected(rid, attempt, code, message))


class FakeDetokenizer(FakePeer):
    """A detokenizer."""

    receives = RouterToDetokenizer
    model = ""

    def heartbeat(self, **fields: Any) -> Hello:
        """Its hello."""
        hello = Hello(
            name=self.name,
            incarnation=f"{self.name}-{self.run}",
            token_address=f"ipc:///tokens/{self.name}",
            model=self.model,
        )
        return msgspec.structs.replace(hello, **fields)

    def lose(self, rid: str) -> None:
        """Say that a stream has a gap."""
        self.channel.send(StreamLost(rid, self.attempts.get(rid, STALE)))

    def text(
        self,
        rid: str,
        start: int,
        ids: Iterable[int],
        offset: int,
        text: str,
        *,
        finish: FinishReason | None = None,
        cached_tokens: int = 0,
        logprobs: list[TokenTextLogprobs] | None = None,
        attempt: str | None = None,
    ) -> None:
        """Send one entry of new text, by default of the last attempt."""
        self.channel.send(
            Text(
                rids=[rid],
                attempts=[attempt or self.attempts.get(rid, STALE)],
                starts=[start],
                ids=[list(ids)],
                offsets=[offset],
                texts=[text],
                finish={0: Finish(finish, cached_tokens)} if finish else {},
                logprobs={0: logprobs} if logprobs else {},
            )
        )


class Bench:
    """A dispatcher with one node and one detokenizer, and whatever is added."""

    def __init__(
        self,
        context: zmq.Context[Any],
        base: str,
        node_wait_s: float,
        models: Many[ServedModel] = (ServedModel(),),
    ) -> None:
        self._context, self._base = context, base
        self.metrics = Metrics()
        self.routing = Routing("ttft", max_index_blocks=1000, rng=random.Random(1))
        self.dispatcher = Dispatcher(
            context,
            node_address=f"{base}nodes",
            detokenizer_address=f"{base}detokenizers",
            session="session",
            node_wait_s=node_wait_s,
            metrics=self.metrics,
            models=models,
            routing=self.routing,
        )
        self._peers: list[FakePeer] = []

    async def set_up(self) -> None:
        """Add what every request needs."""
        self.detokenizer = await self.add_detokenizer("d0")
        self.node = await self.add_node("n0")

    def new_node(self, name: str, info: NodeInfo, run: int = 0) -> FakeNode:
        """A node that has not said anything yet, after so many runs."""
        node = FakeNode(self._context, f"{self._base}nodes", name, run)
        node.info = info
        self._peers.append(node)
        return node

    async def add_node(
        self,
        name: str,
        info: NodeInfo = NodeInfo(),  # noqa: B008 - frozen
        **fields: Any,
    ) -> FakeNode:
        """A node that is known to the router."""
        node = self.new_node(name, info)
        await node.greet(**fields)
        return node

    async def add_detokenizer(self, name: str, model: str = "", **fields: Any) -> FakeDetokenizer:
        """A detokenizer that is known to the router."""
        detokenizer = FakeDetokenizer(self._context, f"{self._base}detokenizers", name)
        detokenizer.model = model
        self._peers.append(detokenizer)
        await detokenizer.greet(**fields)
        return detokenizer

    def close(self) -> None:
        """Close every socket."""
        for peer in self._peers:
            peer.channel.close()
        self.dispatcher.nodes.pool.channel.close()
        self.dispatcher.detokenizers.pool.channel.close()

    async def settle(self) -> None:
        """Wait until all that was sent in either direction has come."""
        for _ in range(2):
            for peer in self._peers:
                await peer.greet()

    async def start(self, *rids: str, **fields: Any) -> list[Sequence]:
        """Start sequences together, and wait until node and detokenizer know of them."""
        wakeup = Wakeup()
        sequences = [
            Sequence(
                rid=rid,
                prompt_ids=list(range(20)),
                sampling=Sampling(seed=1, max_tokens=50),
                stop=["END"],
                wakeup=wakeup,
                **fields,
            )
            for rid in rids
        ]
        await self.dispatcher.start(sequences)
        await self.settle()
        return sequences

    async def start_one(self, *, text: str = "") -> Sequence:
        """A sequence `a` that has one token for each character of a text."""
        (sequence,) = await self.start("a")
        if text:
            self.detokenizer.text("a", 0, range(len(text)), 0, text)
            await until(lambda: sequence.chars == len(text), "the text")
        self.node.received.clear()
        self.detokenizer.received.clear()
        return sequence

    @property
    def recoveries(self) -> float:
        """How often something was recovered."""
        return value(self.metrics.registry, "mlxfleet_recoveries_total")


def value(registry: CollectorRegistry, name: str) -> float:
    """The sum of a metric's samples."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def run(
    test: Callable[[Bench], Awaitable[None]],
    *,
    set_up: bool = True,
    node_wait_s: float = DEADLINE_S,
    models: Many[ServedModel] = (ServedModel(),),
) -> None:
    """Run a test over real sockets."""

    attempts = itertools.count(1)

    async def on_bench(context: zmq.Context[Any], base: str) -> None:
        bench = Bench(context, base, node_wait_s, models)
        try:
            if set_up:
                await bench.set_up()
            await asyncio.wait_for(test(bench), 2 * DEADLINE_S)
        finally:
            bench.close()

    context: zmq.Context[Any] = zmq.Context()
    with (
        tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(dispatcher_module, "new_attempt", lambda: str(next(attempts)))
        try:
            asyncio.run(on_bench(context, f"ipc://{folder}/"))
        finally:
            context.destroy(linger=0)


def opening(output_ids: list[int], chars: int, attempt: int = 1) -> OpenStream:
    """How the stream of `a` is opened."""
    return OpenStream(
        rid="a",
        attempt=str(attempt),
        prompt_tail=list(range(20))[-PROMPT_TAIL_TOKENS:],
        output_ids=output_ids,
        sent_chars=chars,
        stop=["END"],
        max_tokens=50,
        vocab_size=100,
    )


def generation(output_ids: list[int], attempt: int = 1) -> Generate:
    """How `a` is generated."""
    return Generate(
        rid="a",
        attempt=str(attempt),
        detokenizer="d0",
        prompt_ids=list(range(20)),
        output_ids=output_ids,
        sampling=Sampling(seed=1, max_tokens=50),
    )


# --- start ----------------------------------------------------------------------------------------


def test_a_start_opens_the_stream_and_asks_the_node() -> None:
    async def test(bench: Bench) -> None:
        await bench.start("a")
        assert bench.detokenizer.work == [opening([], 0)]
        assert bench.node.work == [generation([])]

    run(test)


def test_sequences_of_one_request_go_to_one_node_and_to_detokenizers_in_turn() -> None:
    async def test(bench: Bench) -> None:
        other_node = await bench.add_node("n1")
        other = await bench.add_detokenizer("d1")
        await bench.start("a", "b", "c", "d")
        asked = sorted(len(node.work) for node in (bench.node, other_node))
        assert asked == [0, 4]
        assert [len(bench.detokenizer.work), len(other.work)] == [2, 2]

    run(test)


def test_requests_go_to_the_node_with_the_least_to_do() -> None:
    async def test(bench: Bench) -> None:
        other = await bench.add_node("n1")
        await bench.start("a", "b")
        await bench.start("c")
        await bench.start("d")
        assert sorted(m.rid for m in bench.node.work) in (["a", "b"], ["c", "d"])
        assert len(bench.node.work) == len(other.work) == 2

    run(test)


def test_sequences_of_different_prompts_are_placed_one_by_one() -> None:
    async def test(bench: Bench) -> None:
        other = await bench.add_node("n1")
        wakeup = Wakeup()
        sampling = Sampling(seed=1, max_tokens=5)
        await bench.dispatcher.start(
            [Sequence(str(n), [n] * 50, sampling, [], wakeup) for n in range(4)]
        )
        await bench.settle()
        assert len(bench.node.work) == len(other.work) == 2

    run(test)


def test_a_prompt_goes_where_it_is_cached() -> None:
    async def test(bench: Bench) -> None:
        nodes = [bench.node, await bench.add_node("n1"), await bench.add_node("n2")]
        blocks = [11, 12, 13]
        for node, stored in zip(nodes, ([11], blocks, [12, 13]), strict=True):
            node.tell(1, stored)
            await node.greet(kv_sequence=1)
        prompt = list(range(100))
        sequence = Sequence(
            "a", prompt, Sampling(seed=1, max_tokens=5), [], asyncio.Event(), block_hashes=blocks
        )
        await bench.dispatcher.start([sequence])
        assert sequence.node == "n1"

    run(test)


def test_a_node_whose_news_were_missed_is_asked_for_everything() -> None:
    async def test(bench: Bench) -> None:
        bench.node.tell(2, [12])
        await bench.node.greet(kv_sequence=2)
        assert bench.node.work == [SendKvSnapshot()]
        bench.node.channel.send(KvSnapshot(sequence=3, first=True, last=True, stored=[11, 12]))
        await bench.node.greet(kv_sequence=3)
        assert bench.routing.index.blocks_of("n0") == 2
        assert bench.node.work == [SendKvSnapshot()]

    run(test)


def test_a_refused_or_released_request_is_no_load() -> None:
    async def test(bench: Bench) -> None:
        first, second = await bench.start("a", "b")
        assert bench.routing.loads.pending("n0") == 2
        bench.node.reject("a", "queue_full")
        await until(lambda: not first.node, "the refusal")
        assert bench.routing.loads.pending("n0") == 1
        bench.dispatcher.release(first)
        bench.dispatcher.release(second)
        assert bench.routing.loads.pending("n0") == 0
        assert bench.routing.loads.pending("n1") == 0

    run(test)


def test_a_node_that_cannot_generate_gets_nothing() -> None:
    async def test(bench: Bench) -> None:
        able = await bench.add_node("n1")
        await bench.node.greet(worker="dead")
        await bench.dispatcher.start(
            [Sequence("a", [1], Sampling(seed=1, max_tokens=5), [], asyncio.Event())]
        )
        await until(lambda: able.work, "the request")
        assert bench.node.work == []

    run(test)


def test_a_start_waits_for_a_node() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d0")
        start = asyncio.ensure_future(bench.start("a"))
        await asyncio.sleep(0)
        node = await bench.add_node("n0")
        await start
        assert node.work == [generation([])]

    run(test, set_up=False)


def test_without_a_node_in_time_the_server_is_unavailable() -> None:
    async def test(bench: Bench) -> None:
        await bench.add_detokenizer("d0")
        await bench.add_node("n0", worker="dead")
        with pytest.raises(UnavailableError) as caught:
            await bench.start("a")
        assert caught.value.retry_after_s

    run(test, set_up=False, node_wait_s=0.05)


def test_without_a_detokenizer_the_server_is_unavailable() -> None:
    async def test(bench: Bench) -> None:
        node = await bench.add_node("n0")
        with pytest.raises(UnavailableError):
            await bench.start("a")
        assert node.work == []

    run(test, set_up=False, node_wait_s=0.05)


def test_nodes_are_told_where_tokens_go() -> None:
    async def test(bench: Bench) -> None:
        await bench.node.greet()
        assert bench.node.received[-1] == Welcome("session", {"d0": "ipc:///tokens/d0"})

    run(test)


# --- text -----------------------------------------------------------------------------------------


def test_text_arrives_and_wakes_the_client() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7, 8], 0, "ab")
        await asyncio.wait_for(sequence.wakeup.wait(), DEADLINE_S)
        assert sequence.output_ids == [7, 8]
        assert sequence.take() == Delta(text="ab")
        assert not sequence.take()

    run(test)


def test_text_that_was_not_taken_is_kept_together() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "a")
        bench.detokenizer.text("a", 1, [8], 1, "b", finish="length")
        await until(lambda: sequence.ended, "the end")
        assert sequence.take() == Delta(text="ab", finish_reason="length")

    run(test)


def test_a_token_without_text_wakes_nobody() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "")
        await until(lambda: sequence.output_ids == [7], "the token")
        assert not sequence.wakeup.is_set()

    run(test)


def test_a_finish_ends_the_sequence() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [0], 0, "", finish="stop", cached_tokens=5)
        await until(lambda: sequence.ended, "the end")
        assert sequence.take().finish_reason == "stop"
        assert sequence.cached_tokens == 5

    run(test)


def test_nothing_is_added_after_the_end() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "a", finish="length")
        bench.detokenizer.text("a", 1, [8], 1, "b")
        bench.detokenizer.text("a", 0, [7], 0, "a", finish="stop")
        await bench.settle()
        assert sequence.output_ids == [7]
        assert sequence.take() == Delta(text="a", finish_reason="length")

    run(test)


def test_what_comes_twice_is_taken_once() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        sequence.take()
        bench.detokenizer.text("a", 0, [0, 1, 2], 0, "abc")
        bench.detokenizer.text("a", 1, [1, 2], 1, "bc")
        await bench.settle()
        assert sequence.output_ids == [0, 1, 2]
        assert not sequence.take()
        assert bench.recoveries == 0

    run(test)


def test_only_what_is_new_is_taken() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        sequence.take()
        bench.detokenizer.text("a", 1, [1, 2, 3], 1, "bcd", logprobs=[entry(t) for t in "bcd"])
        await until(lambda: sequence.chars == 4, "the new text")
        assert sequence.output_ids == [0, 1, 2, 3]
        assert sequence.take() == Delta(text="d", logprobs=[entry("d")])

    run(test)


def test_tokens_and_text_may_overlap_by_different_amounts() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        sequence.take()
        # Token 3 is known already but its text, held back until now, is not.
        bench.detokenizer.text("a", 3, [3], 3, "")
        bench.detokenizer.text("a", 3, [3, 4], 3, "de")
        await until(lambda: sequence.chars == 5, "the new text")
        assert sequence.output_ids == [0, 1, 2, 3, 4]
        assert sequence.take().text == "de"

    run(test)


def test_a_finish_that_comes_with_known_text_is_taken() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        sequence.take()
        bench.detokenizer.text("a", 2, [2], 2, "c", finish="length")
        await until(lambda: sequence.ended, "the end")
        assert sequence.take() == Delta(finish_reason="length")
        assert sequence.output_ids == [0, 1, 2]

    run(test)


def entry(token: str) -> TokenTextLogprobs:
    """The log-probability of a token."""
    return TokenTextLogprobs(TokenText(token, list(token.encode()), -1.0), [])


def test_text_of_unknown_sequences_is_passed_over() -> None:
    async def test(bench: Bench) -> None:
        bench.detokenizer.text("never there", 0, [7], 0, "a")
        bench.detokenizer.lose("never there")
        bench.node.reject("never there", "failed")
        await bench.settle()
        assert bench.node.work == bench.detokenizer.work == []

    run(test)


def test_tokens_are_counted_once() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        bench.detokenizer.text("a", 1, [1, 2, 3], 1, "bcd")
        await bench.settle()
        assert value(bench.metrics.registry, "mlxfleet_output_tokens_total") == 4
        assert value(bench.metrics.registry, "mlxfleet_time_to_first_token_seconds_count") == 1
        assert value(bench.metrics.registry, "mlxfleet_inter_token_seconds_count") == 1

    run(test)


# --- recovery -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "offset"), [(4, 3), (3, 4), (9, 9)])
def test_a_gap_is_asked_for_again(start: int, offset: int) -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        bench.detokenizer.text("a", start, [9], offset, "z")
        await bench.settle()
        assert bench.detokenizer.work == [opening([0, 1, 2], 3)]
        assert bench.node.work == [Resend("a", "1", "d0", 3)]
        assert sequence.output_ids == [0, 1, 2]
        assert bench.recoveries == 1

    run(test)


def test_a_lost_stream_is_opened_again() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        bench.detokenizer.lose("a")
        await bench.settle()
        assert bench.detokenizer.work == [opening([0, 1, 2], 3)]
        assert bench.node.work == [Resend("a", "1", "d0", 3)]

    run(test)


def test_a_detokenizer_that_restarted_gets_its_streams_again() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        await bench.detokenizer.restart()
        await bench.settle()
        assert bench.detokenizer.work == [opening([0, 1, 2], 3)]
        assert bench.node.work == [Resend("a", "1", "d0", 3)]

    run(test)


def test_streams_of_other_detokenizers_are_left_alone() -> None:
    async def test(bench: Bench) -> None:
        other = await bench.add_detokenizer("d1")
        await bench.start("a", "b")
        mine = [message.rid for message in bench.detokenizer.work]
        other.received.clear()
        bench.node.received.clear()
        await bench.detokenizer.restart()
        await bench.settle()
        assert [message.rid for message in bench.detokenizer.work] == mine
        assert [message.rid for message in bench.node.work] == mine
        assert other.work == []

    run(test)


def test_a_node_that_restarted_gets_its_requests_with_the_tokens_so_far() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        await bench.node.restart()
        await bench.settle()
        assert bench.node.work == [generation([0, 1, 2], 2)]
        assert bench.detokenizer.work == [opening([0, 1, 2], 3, 2)]
        assert bench.recoveries == 1

    run(test)


def test_a_node_that_restarted_without_its_model_loses_its_requests_to_a_ready_one() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        other = await bench.add_node("n1")
        await bench.node.restart(worker="loading")
        await until(lambda: other.work, "the request")
        await bench.settle()
        assert other.work == [generation([0, 1, 2], 2)]
        assert bench.node.work == [Release("a", "1")]
        assert bench.recoveries == 0

    run(test)


def test_a_node_that_restarted_without_its_model_keeps_its_requests_if_it_is_the_only_one() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        await bench.node.restart(worker="loading")
        await bench.settle()
        assert bench.node.work == [generation([0, 1, 2], 2)]

    run(test)


def test_a_request_that_the_node_does_not_know_is_sent_again() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        bench.node.reject("a", "unknown")
        await until(lambda: bench.node.work, "the request")
        assert bench.node.work == [generation([0, 1, 2], 2)]

    run(test)


def test_what_an_earlier_attempt_still_brings_is_dropped() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        await bench.node.restart()
        await until(lambda: bench.node.work, "the second attempt")
        bench.detokenizer.text("a", 3, [7], 3, "x", finish="length", attempt="1")
        bench.detokenizer.channel.send(StreamLost("a", "1"))
        bench.node.channel.send(Rejected("a", "1", "failed", "because"))
        bench.detokenizer.text("a", 3, [8], 3, "y")
        await until(lambda: sequence.chars == 4, "the text")
        assert (sequence.output_ids, sequence.ended) == ([0, 1, 2, 8], False)
        assert bench.recoveries == 1

    run(test)


def test_what_has_ended_is_not_recovered() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "a", finish="stop")
        await until(lambda: sequence.ended, "the end")
        bench.detokenizer.lose("a")
        bench.detokenizer.text("a", 5, [7], 5, "a")
        bench.node.reject("a", "unknown")
        await bench.settle()
        await bench.detokenizer.restart()
        await bench.node.restart()
        await bench.settle()
        assert bench.detokenizer.work == bench.node.work == []

    run(test)


def test_heartbeats_recover_nothing() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one(text="abc")
        await bench.settle()
        assert bench.detokenizer.work == bench.node.work == []
        assert bench.recoveries == 0

    run(test)


# --- lost nodes -----------------------------------------------------------------------------------


def failovers(bench: Bench) -> float:
    return value(bench.metrics.registry, "mlxfleet_failovers_total")


def test_a_sequence_goes_on_on_another_node_with_the_tokens_so_far() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        other = await bench.add_node("n1")
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(0.0)
        await until(lambda: other.work and bench.node.work, "the move")
        assert other.work == [generation([0, 1, 2], 2)]
        assert bench.node.work == [Release("a", "1")]
        assert bench.detokenizer.work == [opening([0, 1, 2], 3, 2)]
        assert (sequence.node, failovers(bench)) == ("n1", 1)

    run(test)


def test_nothing_moves_while_its_node_can_generate() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        other = await bench.add_node("n1")
        bench.dispatcher.move_stranded(0.0)
        await other.greet()
        assert (sequence.node, other.work, failovers(bench)) == ("n0", [], 0)

    run(test)


def test_what_has_ended_does_not_move() -> None:
    async def test(bench: Bench) -> None:
        await bench.start_one()
        bench.detokenizer.text("a", 0, [1], 0, "x", finish="stop")
        await bench.detokenizer.greet()
        other = await bench.add_node("n1")
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(0.0)
        await other.greet()
        assert other.work == []

    run(test)


def test_sequences_of_a_lost_node_are_spread() -> None:
    async def test(bench: Bench) -> None:
        sequences = await bench.start("a", "b", "c", "d")
        await bench.add_node("n1")
        await bench.add_node("n2")
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(0.0)
        assert sorted(sequence.node for sequence in sequences) == ["n1", "n1", "n2", "n2"]

    run(test)


def test_without_another_node_a_sequence_waits_and_then_fails() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(100.0)
        bench.dispatcher.move_stranded(107.0)
        assert not sequence.ended
        bench.dispatcher.move_stranded(107.1 + 1)
        assert isinstance(sequence.error, UnavailableError)

    run(test, node_wait_s=8.0)


def test_a_node_that_is_back_in_time_keeps_its_sequences() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(100.0)
        await bench.node.greet()
        bench.dispatcher.move_stranded(200.0)
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(300.0)
        assert (sequence.node, sequence.error) == ("n0", None)

    run(test, node_wait_s=8.0)


def test_a_sequence_under_which_workers_die_again_and_again_is_given_up() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        nodes = {"n0": bench.node, "n1": await bench.add_node("n1")}
        for number in range(MAX_FAILED_WORKERS):
            lost = sequence.node
            await nodes[lost].greet(worker="dead", worker_restarts=number)
            bench.dispatcher.move_stranded(0.0)
            assert sequence.node != lost
            await nodes[lost].greet(worker_restarts=number + 1)
        await nodes[sequence.node].greet(worker="dead")
        bench.dispatcher.move_stranded(0.0)
        assert isinstance(sequence.error, GenerationError)

    run(test)


def test_workers_that_only_seemed_to_hang_are_not_held_against_a_sequence() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        nodes = {"n0": bench.node, "n1": await bench.add_node("n1")}
        for _ in range(MAX_FAILED_WORKERS + 1):
            lost = sequence.node
            await nodes[lost].greet(worker="hung")
            bench.dispatcher.move_stranded(0.0)
            assert sequence.node != lost
            await nodes[lost].greet()
        assert (sequence.error, sequence.moves) == (None, MAX_FAILED_WORKERS + 1)

    run(test)


def test_a_sequence_with_which_every_worker_hangs_is_given_up() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        nodes = {"n0": bench.node}
        for number in range(MAX_FAILED_WORKERS):
            nodes[f"n{number + 1}"] = await bench.add_node(f"n{number + 1}")
            await nodes[sequence.node].greet(worker="hung")
            bench.dispatcher.move_stranded(0.0)
            assert sequence.error is None
        await bench.add_node("last")
        await nodes[sequence.node].greet(worker="hung")
        bench.dispatcher.move_stranded(0.0)
        assert isinstance(sequence.error, GenerationError)

    run(test)


def test_nodes_that_are_gone_whatever_they_compute_are_not_held_against_a_sequence() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        nodes = {"n0": bench.node, "n1": await bench.add_node("n1")}
        for _ in range(2 * MAX_FAILED_WORKERS):
            lost = sequence.node
            nodes[lost].channel.send(Leaving())
            await until(lambda n=lost: bench.dispatcher.nodes.state(n) is State.DEAD, "its end")
            bench.dispatcher.move_stranded(0.0)
            assert sequence.node != lost
            await nodes[lost].restart()
        assert (sequence.error, sequence.moves) == (None, 2 * MAX_FAILED_WORKERS)

    run(test)


def test_what_a_former_node_refuses_changes_nothing() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        await bench.add_node("n1")
        await bench.node.greet(worker="dead")
        bench.dispatcher.move_stranded(0.0)
        bench.node.reject("a", "failed")
        await bench.node.greet()
        assert (sequence.node, sequence.error) == ("n1", None)

    run(test)


def test_a_draining_node_keeps_its_sequences_only_without_another() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        assert bench.dispatcher.nodes.drain("n0", True)
        bench.dispatcher.move_stranded(0.0)
        bench.dispatcher.move_stranded(1000.0)
        assert (sequence.node, sequence.error) == ("n0", None)
        other = await bench.add_node("n1")
        for _ in range(2 * MAX_FAILED_WORKERS):
            bench.dispatcher.move_stranded(1000.0)
            assert sequence.node == "n1"
            bench.dispatcher.nodes.drain("n0", False)
            bench.dispatcher.nodes.drain("n1", True)
            bench.dispatcher.move_stranded(1000.0)
            assert sequence.node == "n0"
            bench.dispatcher.nodes.drain("n0", True)
            bench.dispatcher.nodes.drain("n1", False)
        await other.greet()
        assert sequence.error is None
        assert not bench.dispatcher.nodes.drain("nobody", True)

    run(test)


def test_a_node_whose_socket_is_closed_is_dead_at_once() -> None:
    async def test(bench: Bench) -> None:
        nodes = bench.dispatcher.nodes
        assert nodes.state("n0") is State.READY
        bench.node.channel.close()
        soon = time.monotonic() + PROBE_AFTER_S + 0.01

        def dead() -> bool:
            nodes.look(soon)
            return nodes.state("n0") is State.DEAD

        await until(dead, "the node to be dead")
        assert nodes.ready() == []

    run(test)


def test_a_full_node_passes_a_sequence_on_and_it_waits_if_all_are_full() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.node.reject("a", "queue_full")
        await until(lambda: not sequence.node, "the refusal")
        now = time.monotonic()
        for later in (1.0, 7.9):
            bench.dispatcher.move_stranded(now + later)
            assert (sequence.node, sequence.ended, failovers(bench)) == ("n0", False, 0)
            await bench.settle()
            bench.node.reject("a", "queue_full")
            await until(lambda: not sequence.node, "the refusal")
        bench.dispatcher.move_stranded(now + 8.1)
        assert isinstance(sequence.error, OverloadedError)

    run(test, node_wait_s=8.0)


def test_a_node_that_is_lost_again_and_again_gets_one_request_as_a_probe() -> None:
    async def test(bench: Bench) -> None:
        nodes = bench.dispatcher.nodes
        for _ in range(FAULTS_TO_OPEN):
            await bench.node.greet(worker="dead")
            await bench.node.greet()
        assert nodes.state("n0") is State.READY
        assert nodes.ready() == []
        nodes.breakers["n0"]._open_until = time.monotonic()
        sequence = await bench.start_one()
        assert nodes.ready() == []
        bench.detokenizer.text("a", 0, [1], 0, "x")
        await until(lambda: sequence.output_ids, "a token")
        assert [status.name for status in nodes.ready()] == ["n0"]

    run(test)


# --- rejection ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "status", "word"),
    [
        ("too_long", InvalidRequestError, 400, "context_length_exceeded"),
        ("failed", GenerationError, 500, None),
    ],
)
def test_a_rejection_becomes_the_clients_error(
    code: str, kind: type[RequestError], status: int, word: str | None
) -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.node.reject("a", code, "the node's own words")
        await asyncio.wait_for(sequence.wakeup.wait(), DEADLINE_S)
        assert sequence.ended
        with pytest.raises(kind) as caught:
            sequence.take()
        assert "own words" not in caught.value.message
        assert (caught.value.status, caught.value.code) == (status, word)
        assert bool(caught.value.retry_after_s) == (status == 429)

    run(test)


def test_a_rejection_after_the_end_changes_nothing() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "a", finish="stop")
        await until(lambda: sequence.ended, "the end")
        bench.node.reject("a", "failed")
        await bench.settle()
        assert sequence.error is None

    run(test)


# --- release --------------------------------------------------------------------------------------


def test_a_release_is_told_to_both_once() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one(text="abc")
        for _ in range(2):
            bench.dispatcher.release(sequence)
        await bench.settle()
        assert bench.node.work == [Release("a", "1")]
        assert bench.detokenizer.work == [CloseStream("a", "1")]

    run(test)


def test_what_ended_is_released_too() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.detokenizer.text("a", 0, [7], 0, "a", finish="stop")
        await until(lambda: sequence.ended, "the end")
        bench.dispatcher.release(sequence)
        await bench.settle()
        assert bench.node.work == [Release("a", "1")]
        assert bench.detokenizer.work == [CloseStream("a", "1")]

    run(test)


def test_a_sequence_that_was_never_started_needs_no_release() -> None:
    async def test(bench: Bench) -> None:
        sampling = Sampling(seed=1, max_tokens=5)
        bench.dispatcher.release(Sequence("a", [1], sampling, [], asyncio.Event()))
        await bench.settle()
        assert bench.node.work == bench.detokenizer.work == []

    run(test)


def test_nothing_comes_for_a_sequence_that_is_released() -> None:
    async def test(bench: Bench) -> None:
        sequence = await bench.start_one()
        bench.dispatcher.release(sequence)
        bench.detokenizer.text("a", 0, [7], 0, "a")
        bench.detokenizer.lose("a")
        bench.node.reject("a", "unknown")
        await bench.settle()
        await bench.node.restart()
        await bench.settle()
        assert sequence.output_ids == []
        assert bench.node.work == []

    run(test)


# --- protocol versions ----------------------------------------------------------------------------


def test_a_node_of_another_protocol_is_refused_and_forgotten() -> None:
    async def test(bench: Bench) -> None:
        node = await bench.add_node("n0", version=PROTOCOL_VERSION + 1)
        (refused,) = node.received
        assert isinstance(refused, Refused)
        assert str(PROTOCOL_VERSION + 1) in refused.reason
        nodes = bench.dispatcher.nodes
        assert nodes.ready() == []
        assert nodes.limits("", 1) is None

    run(test, set_up=False)


def test_a_detokenizer_of_another_protocol_is_refused_and_forgotten() -> None:
    async def test(bench: Bench) -> None:
        detokenizer = await bench.add_detokenizer("d0", version=PROTOCOL_VERSION + 1)
        (refused,) = detokenizer.received
        assert isinstance(refused, Refused)
        assert bench.dispatcher.detokenizers.addresses("") == {}
        assert bench.dispatcher.detokenizers.assign("") is None

    run(test, set_up=False)
