"""Whatever is delayed, lost, restarted or moved: every sequence ends with exactly its tokens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxfleet.common import channels
from mlxfleet.common.messages import Sampling
from mlxfleet.common.metrics_server import MetricsServer
from mlxfleet.detokenizer_proc import main as detokenizer_main
from mlxfleet.router import dispatcher, sequences
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.wakeup import Wakeup
from mlxfleet.workers.scheduler import Scheduler
from tests.protocol import network as network_module
from tests.protocol.network import FakeChannel, Network
from tests.protocol.processes import (
    NODE_ADDRESS,
    TOKEN_ADDRESS,
    TOKENIZER,
    Client,
    Detokenizer,
    Node,
    Router,
    expect,
)
from tests.protocol.virtual_time import Clock, VirtualLoop

NODES = ("n0", "n1")
# A turn lets this much time pass, in which every report is sent once.
TURN_S = 0.3
MAX_TURNS = 600
MANY = 1000
# One of several, whose number is only known when it comes to it.
PICK = st.integers(0, 1000)


@contextlib.contextmanager
def faked(clock: Clock, network: Network) -> Iterator[None]:
    """Replace what the processes have of the world."""

    async def no_port(self: MetricsServer, host: str, port: int) -> int:
        return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        patch.setattr(network_module, "current", [network])
        patch.setattr(channels, "Channel", FakeChannel)
        patch.setattr(MetricsServer, "listen", no_port)
        patch.setattr(detokenizer_main, "load_fast_tokenizer", lambda *_, **__: TOKENIZER)
        # More than should happen to one sequence in life may happen to it here.
        patch.setattr(dispatcher, "MAX_DETOKENIZER_DEATHS", MANY)
        patch.setattr(sequences, "MAX_FAILED_WORKERS", MANY)
        patch.setattr(sequences, "MAX_MOVES", MANY)
        for kind in (Scheduler, Routing):
            defaults = kind.__init__.__kwdefaults__
            assert defaults is not None
            patch.setitem(defaults, "now", clock)
        yield


class Protocol(RuleBasedStateMachine):
    """A router, a detokenizer and two nodes, and what can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.network = Clock(), Network()
        self._faked = faked(self.clock, self.network)
        self._faked.__enter__()
        self.loop = VirtualLoop(self.clock)
        self.loop.set_exception_handler(self._on_exception)
        self.errors: list[Any] = []
        self.clients: list[Client] = []
        self.names = (f"r{number}" for number in itertools.count())

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the processes' loop."""
        self.loop.run_until_complete(work)
        assert not self.errors

    @initialize()
    def start(self) -> None:
        async def start() -> None:
            self.router = Router()
            self.detokenizer = Detokenizer()
            self.nodes = {name: Node(name, self.clock) for name in NODES}

        self.run(start())
        self.calm(5)

    # --- what can happen

    @rule(
        prompt=st.lists(st.integers(3, 40), min_size=1, max_size=80),
        max_tokens=st.integers(1, 60),
        temperature=st.sampled_from([0.0, 1.0]),
        stop=st.sampled_from([[], ["e"], ["lo"]]),
    )
    def request(
        self, prompt: list[int], max_tokens: int, temperature: float, stop: list[str]
    ) -> None:
        """A client comes."""
        sampling = Sampling(seed=7, max_tokens=max_tokens, temperature=temperature)
        ids, text, reason = expect(prompt, sampling, stop)

        async def begin() -> None:
            sequence = Sequence(
                rid=next(self.names),
                prompt_ids=prompt,
                sampling=sampling,
                stop=stop,
                wakeup=Wakeup(),
            )
            started = asyncio.create_task(self.router.dispatcher.start([sequence]))
            self.clients.append(Client(sequence, started, ids, text, reason))

        self.run(begin())

    @precondition(lambda self: len(self.clients) > 4)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        """A client goes away."""
        client = self.clients.pop(pick % len(self.clients))
        client.started.cancel()
        self.run(self._release(client))

    async def _release(self, client: Client) -> None:
        self.router.dispatcher.release(client.sequence)

    @rule(picks=st.lists(PICK, min_size=1, max_size=12))
    def arrive(self, picks: list[int]) -> None:
        """Some of what is under way arrives, over any links."""

        async def arrive() -> None:
            for pick in picks:
                if ways := self.network.directions():
                    ways[pick % len(ways)]()
                    await asyncio.sleep(0)

        self.run(arrive())

    @rule(turns=st.integers(1, 4))
    def calm(self, turns: int) -> None:
        """Time passes, and everything arrives."""
        self.run(self._turns(turns))

    @rule(held=PICK, seconds=st.sampled_from([0.02, 0.1, 1.0]))
    def hold(self, held: int, seconds: float) -> None:
        """Time passes, and everything arrives but what one direction of a connection carries."""
        self.run(self._hold(held, seconds))

    async def _turns(self, turns: int) -> None:
        for _ in range(turns * 10):
            self.network.reconnect()
            await self._flow()
            self.network.forget_dead()
            await asyncio.sleep(TURN_S / 10)

    async def _hold(self, held: int, seconds: float) -> None:
        """Everything flows but one direction; twice, so that what follows from it does too."""
        ways = self.network.directions()
        way = ways[held % len(ways)] if ways else None
        for _ in range(2):
            await self._flow(way)
            await asyncio.sleep(seconds / 2)
        await self._flow(way)

    async def _flow(self, held: Callable[[], None] | None = None) -> None:
        while ways := [way for way in self.network.directions() if way != held]:
            for deliver in ways:
                deliver()
            await asyncio.sleep(0)

    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0]))
    def silence(self, seconds: float) -> None:
        """Time passes, and nothing arrives."""
        self.run(asyncio.sleep(seconds))

    @rule(pick=PICK, arriving=PICK, again=st.booleans())
    def lose_a_link(self, pick: int, arriving: int, again: bool) -> None:
        """A connection over TCP is lost, with the newest of what is under way."""
        over_tcp = (NODE_ADDRESS, TOKEN_ADDRESS)
        links = [c for c in self.network.connections if c.server.address in over_tcp and not c.cut]
        if not links:
            return
        connection = links[pick % len(links)]

        async def lose() -> None:
            self.network.cut(connection, arriving % (len(connection.up) + 1))
            await asyncio.sleep(0)
            if again:
                self.network.reconnect()

        self.run(lose())

    @rule(node=st.sampled_from(NODES), draining=st.booleans())
    def drain(self, node: str, draining: bool) -> None:
        """An operator drains a node, or takes it back; what is there moves."""

        async def drain() -> None:
            self.router.dispatcher.nodes.drain(node, draining)
            self.router.dispatcher.move_stranded(self.clock.now)

        self.run(drain())

    @rule(held=st.lists(PICK, min_size=1, max_size=6))
    def swing(self, held: list[int]) -> None:
        """The nodes are drained in turn, while something is always late."""
        for number, pick in enumerate(held):
            self.drain(NODES[number % 2], True)
            self.drain(NODES[(number + 1) % 2], False)
            self.hold(pick, 0.02)

    @rule(node=st.sampled_from(NODES))
    def kill_scheduler(self, node: str) -> None:
        async def restart() -> None:
            await self.nodes[node].close_scheduler()
            self.nodes[node].start_scheduler()
            await asyncio.sleep(0)

        self.run(restart())

    @rule(node=st.sampled_from(NODES))
    def kill_worker(self, node: str) -> None:
        async def restart() -> None:
            self.nodes[node].worker.close()
            self.nodes[node].start_worker()

        self.run(restart())

    @rule()
    def kill_detokenizer(self) -> None:
        async def restart() -> None:
            await self.detokenizer.close()
            self.detokenizer = Detokenizer()
            await asyncio.sleep(0)

        self.run(restart())

    @precondition(lambda self: len(self.clients) > 8)
    @rule()
    def kill_router(self) -> None:
        """Its clients lose their connections."""

        async def restart() -> None:
            self.router.close()
            self.router = Router()

        for client in self.clients:
            client.started.cancel()
        self.clients.clear()
        self.run(restart())

    # --- what must hold

    @invariant()
    def nobody_gets_what_is_not_theirs(self) -> None:
        for client in self.clients:
            if client.sequence.error is None:
                client.read()

    def teardown(self) -> None:
        try:
            if hasattr(self, "router"):
                self.run(self._heal())
                self._finish()
                self.run(self._close())
        finally:
            with contextlib.suppress(AttributeError):
                self._cancel_all()
            self.loop.close()
            self._faked.__exit__(None, None, None)

    async def _heal(self) -> None:
        for name in NODES:
            self.router.dispatcher.nodes.drain(name, False)

    def _finish(self) -> None:
        for _ in range(MAX_TURNS):
            self.calm(1)
            self.nobody_gets_what_is_not_theirs()
            if all(client.sequence.ended for client in self.clients):
                break
        for client in self.clients:
            sequence = client.sequence
            assert sequence.error is None, sequence.error
            assert (sequence.output_ids, client.text) == (client.expected_ids, client.expected_text)
            assert (sequence.finish_reason, client.finishes) == (client.expected_reason, 1)

    async def _close(self) -> None:
        for client in self.clients:
            self.router.dispatcher.release(client.sequence)
        self.router.close()
        await self.detokenizer.close()
        for node in self.nodes.values():
            node.worker.close()
            await node.close_scheduler()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
