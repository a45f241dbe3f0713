"""All rogues of the campaign at once, with two honest nodes beside, around a real dispatcher and a
real detokenizer in one process."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import zmq

from mlxfleet.bench.rogue.campaign import decodes, judge
from mlxfleet.bench.rogue.mischief import MISCHIEF, entry
from mlxfleet.bench.rogue.mutations import mutated
from mlxfleet.bench.rogue.node import RogueNode
from mlxfleet.common.config import DetokenizerProcess
from mlxfleet.common.messages import (
    Finish,
    Generate,
    KvEvents,
    KvSnapshot,
    NodeInfo,
    NodeToRouter,
    Rejected,
    Sampling,
)
from mlxfleet.detokenizer_proc import main as detokenizer
from mlxfleet.router.dispatcher import Dispatcher, new_rid
from mlxfleet.router.health import State
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.nodes import LINK
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import Sequence
from tests.detokenizer_proc.tokenizers_for_tests import byte_level
from tests.router.reports import make_model
from tests.router.test_dispatcher import until

MODEL = msgspec.structs.replace(make_model(), vocab_size=300)
MAX_TOKENS = 12
FENCED_WITHIN_S = 5.0
# For a machine that is busy with other things.
SLACK_S = 3.0
RUNS_S = 9.0
AT_ONCE = 24

T = TypeVar("T")


def token(prompt: list[int], position: int) -> int:
    """What an honest node answers."""
    return 10 + (sum(prompt) + 7 * position) % 250


def serve(node: RogueNode, request: Generate) -> None:
    """What an honest node does."""
    serve_from(node, request, len(request.output_ids))


def serve_from(node: RogueNode, request: Generate, start: int) -> None:
    """The same from a position on."""
    for at in range(start, MAX_TOKENS):
        finish = Finish("length") if at == MAX_TOKENS - 1 else None
        ids = [token(request.prompt_ids, at)]
        node.push(request.detokenizer, entry(request, ids, start=at, finish=finish))


def ignore(node: RogueNode, request: Generate, start: int) -> None:
    """What a rogue does when it is asked again."""


class Fleet:
    """A dispatcher, a detokenizer, and nodes."""

    def __init__(self, base: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(
            self.context,
            node_address=f"{base}/nodes",
            detokenizer_address=f"{base}/detokenizers",
            session="session",
            node_wait_s=30.0,
            metrics=self.metrics,
            routing=Routing("ttft", max_index_blocks=1000, rng=random.Random(1)),
        )
        self.service = detokenizer.DetokenizerService(
            DetokenizerProcess(
                name="d0",
                model_dir=Path(),
                router_address=f"{base}/detokenizers",
                token_address=f"{base}/tokens",
                trust_remote_code=False,
            )
        )
        self.nodes: list[RogueNode] = []
        self._base = base

    async def join(self, name: str, act: Any, rate: float) -> RogueNode:
        """Add a node."""
        node = RogueNode(
            self.context,
            f"{self._base}/nodes",
            name,
            NodeInfo(),
            MODEL,
            on_request=act,
            on_resend=serve_from if act is serve else ignore,
        )
        node.status = msgspec.structs.replace(node.status, prefill_tokens_per_s=rate)
        self.nodes.append(node)
        await asyncio.wait_for(node.joined.wait(), 10)
        return node

    async def ask(self, number: int) -> Sequence:
        """One sequence from start to end."""
        wakeup = asyncio.Event()
        sampling = Sampling(seed=1, max_tokens=MAX_TOKENS)
        prompt = [number % 250] * 40
        sequence = Sequence(new_rid(), prompt, sampling, [], wakeup)
        await self.dispatcher.start([sequence])
        while not sequence.ended:
            wakeup.clear()
            await wakeup.wait()
        self.dispatcher.release(sequence)
        return sequence

    async def close(self) -> None:
        """Close everything."""
        for node in self.nodes:
            await node.close()
        await self.service.shutdown()
        self.dispatcher.nodes.pool.channel.close()
        self.dispatcher.detokenizers.pool.channel.close()
        self.context.destroy(linger=0)


async def attack(fleet: Fleet) -> tuple[Counter[str], dict[str, float]]:
    """Ask for as long as the rogues need to be found; how the sequences ended, and how long it took
    from each rogue's first request until it was fenced."""
    outcomes: Counter[str] = Counter()
    fenced: dict[str, float] = {}
    for number in range(2):
        await fleet.join(f"honest-{number}", serve, 2000.0)
    rogues = {}
    for number, (what, (act, _)) in enumerate(MISCHIEF.items()):
        rogues[what] = await fleet.join(f"rogue-{number}", act, 1e9)
    watching = asyncio.create_task(fleet.dispatcher.watch_nodes())
    over = time.monotonic() + RUNS_S

    async def client(number: int) -> None:
        while time.monotonic() < over:
            sequence = await fleet.ask(number)
            right = [token(sequence.prompt_ids, p) for p in range(MAX_TOKENS)]
            ended = sequence.output_ids == right and sequence.error is None
            outcomes["right" if ended else f"wrong: {sequence.error}"] += 1
            await asyncio.sleep(0.02)

    async def watch() -> None:
        while time.monotonic() < over:
            for what, node in rogues.items():
                state = fleet.dispatcher.nodes.state(node.name)
                if state is State.FENCED and what not in fenced:
                    fenced[what] = time.monotonic() - (node.first_request_s or over)
            await asyncio.sleep(0.02)

    await asyncio.gather(watch(), *(client(number) for number in range(AT_ONCE)))
    watching.cancel()
    asked = {what for what, node in rogues.items() if node.first_request_s}
    for what, (_, breach) in MISCHIEF.items():
        if breach and what in asked:
            fenced.setdefault(what, float("inf"))
    assert asked == set(MISCHIEF), f"got no request: {set(MISCHIEF) - asked}"
    return outcomes, fenced


async def mutate(fleet: Fleet, count: int, rng: random.Random) -> tuple[Counter[str], list[float]]:
    """Send so many mutated messages, each from a node of its own, while sequences run; how these
    ended, and how long each node was not fenced that sent what shows whose fault it is."""
    for number in range(2):
        await fleet.join(f"honest-{number}", serve, 2000.0)
    watching = asyncio.create_task(fleet.dispatcher.watch_nodes())
    outcomes: Counter[str] = Counter()
    took: list[float] = []
    left = iter(range(count))
    over = asyncio.Event()
    # Some have been served before.
    await asyncio.gather(*(fleet.ask(number) for number in range(8)))

    async def client(number: int) -> None:
        while not over.is_set():
            sequence = await fleet.ask(number)
            right = [token(sequence.prompt_ids, p) for p in range(MAX_TOKENS)]
            ended = sequence.output_ids == right and sequence.error is None
            outcomes["right" if ended else f"wrong: {sequence.error}"] += 1
            await asyncio.sleep(0.05)

    async def work() -> None:
        for number in left:
            node = await fleet.join(f"rogue-{number}", lambda node, request: None, 1e9)
            if (seconds := await spoil(fleet, node, rng)) is not None:
                took.append(seconds)
            fleet.nodes.remove(node)
            await node.close()

    async def works() -> None:
        await asyncio.gather(*(work() for _ in range(3)))
        over.set()

    await asyncio.gather(works(), *(client(number) for number in range(6)))
    watching.cancel()
    return outcomes, took


async def spoil(fleet: Fleet, node: RogueNode, rng: random.Random) -> float | None:
    """Send one mutated message; how long it took until the node was fenced, if it had to be."""
    nodes = fleet.dispatcher.nodes
    kinds: list[Any] = [
        node.status,
        KvEvents(sequence=1, cleared=False, removed=[1, 2], stored=[3, 4]),
        KvSnapshot(sequence=1, first=True, last=True, stored=[5, 6]),
        Rejected("a", "b", "queue_full", "because"),
        None,
    ]
    message = rng.choice(kinds)
    if message is None:
        try:
            await asyncio.wait_for(node.asked.wait(), 1)
        except TimeoutError:
            return None
        request = node.requests[-1]
        frame, _ = mutated(entry(request, [20]), rng)
        verdict = judge(frame, request, MODEL)
        if verdict == "true" or len(frame) >= detokenizer.LINK.cut_off_bytes:
            return None
        node.push(request.detokenizer, frame)
        must = verdict == "broken" and len(frame) <= detokenizer.LINK.frame_bytes
    else:
        frame, _ = mutated(message, rng)
        if len(frame) >= LINK.cut_off_bytes:
            return None
        node.send(frame)
        must = len(frame) > LINK.frame_bytes or not decodes(frame, NodeToRouter)
    began = time.monotonic()
    if must:
        await until(lambda: nodes.state(node.name) is State.FENCED, "the fence")
    nodes.drain(node.name, draining=False)
    return time.monotonic() - began if must else None


def run_fleet(monkeypatch: pytest.MonkeyPatch, attack: Callable[[Fleet], Awaitable[T]]) -> T:
    """Start a fleet, attack it, and see that nothing came of it for the honest nodes."""
    monkeypatch.setattr(detokenizer, "load_fast_tokenizer", lambda *_, **__: byte_level())

    async def run(base: str) -> T:
        fleet = Fleet(base)
        await fleet.service.startup()
        try:
            await until(lambda: fleet.dispatcher.detokenizers.alive(""), "the detokenizer")
            result = await asyncio.wait_for(attack(fleet), 600)
        finally:
            await fleet.close()
        honest = [fleet.dispatcher.nodes.fence_of(f"honest-{n}") for n in range(2)]
        assert honest == ["", ""]
        return result

    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as folder:
        return asyncio.run(run(f"ipc://{folder}"))


def test_mutated_messages_harm_no_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, took = run_fleet(monkeypatch, lambda fleet: mutate(fleet, 200, random.Random(5)))
    assert set(outcomes) == {"right"}
    assert len(took) > 50


def test_every_sequence_ends_right_and_every_rogue_is_fenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes, fenced = run_fleet(monkeypatch, attack)
    assert set(outcomes) == {"right"}
    must = {what for what, (_, breach) in MISCHIEF.items() if breach}
    late = {w: s for w, s in fenced.items() if w in must and s > FENCED_WITHIN_S + SLACK_S}
    assert not late
