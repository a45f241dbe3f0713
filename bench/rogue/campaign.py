"""Rogue nodes beside honest ones, under load, and what has to hold meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import zmq
from msgspec import Struct, structs
from prometheus_client.parser import text_string_to_metric_families

from mlxfleet.bench.far_fleet import FarFleet
from mlxfleet.bench.rogue.mischief import MISCHIEF, Mischief, entry, swallow
from mlxfleet.bench.rogue.mutations import mutated
from mlxfleet.bench.rogue.node import RogueNode
from mlxfleet.bench.servers import ServerError
from mlxfleet.common.admin_header import ADMIN_HEADERS
from mlxfleet.common.curve import CurveClient
from mlxfleet.common.key_files import DEFAULT_NODE, ROUTER, read_key
from mlxfleet.common.messages import (
    Generate,
    KvEvents,
    KvSnapshot,
    LoadProgress,
    ModelInfo,
    NodeInfo,
    NodeStatus,
    NodeToRouter,
    PassTime,
    Rejected,
    Telemetry,
    Tokens,
    TokensOf,
)
from mlxfleet.detokenizer_proc.entry_check import BrokenError, check_entry, highest_id
from mlxfleet.router.nodes import LINK

FENCED_WITHIN_S = 5.0
POLL_S = 0.05
JOIN_S = 10.0
# How long a rogue waits for a request that it may spoil.
REQUEST_S = 3.0
# New ones for a while, so that a name that was fenced does not lack requests.
NAMES = 900
MAX_GROWTH_BYTES = 400_000_000
HONEST = 2
FRONT = ("router", "tokenizer", "detokenizer")


class Seen(Struct, frozen=True):
    """A node in /fleet."""

    name: str
    state: str
    breaker: str = ""
    fenced: str = ""


class FleetView(Struct, frozen=True):
    """What is read of /fleet."""

    nodes: list[Seen]


@dataclass
class Findings:
    """What was seen; `late` is what was not contained in time."""

    sent: Counter[str] = field(default_factory=Counter)
    breaches: int = 0
    fenced_s: list[float] = field(default_factory=list)
    late: list[str] = field(default_factory=list)


class Campaign:
    """Sends rogue nodes into a fleet."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        fleet: FarFleet,
        info: NodeInfo,
        model: ModelInfo,
        rng: random.Random,
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._info = info
        self._model = model
        self._rng = rng
        self._context: zmq.Context[Any] = zmq.Context()
        self._names = itertools.cycle(f"rogue-{number}" for number in range(NAMES))
        self._security = CurveClient(
            server=read_key(fleet.keys / f"{ROUTER}.public"),
            secret=read_key(fleet.keys / f"{DEFAULT_NODE}.secret"),
        )
        self.findings = Findings()

    def close(self) -> None:
        """Close what is left."""
        self._context.destroy(linger=0)

    # --- mutated messages ---------------------------------------------------------------------

    async def mutate(self, count: int, at_once: int) -> None:
        """Send so many mutated messages, each from a rogue of its own."""
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                await self._one_mutation()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(work())

    async def _one_mutation(self) -> None:
        node = await self._join()
        try:
            kind = self._rng.choice(("status", "events", "snapshot", "rejected", "tokens"))
            if kind == "tokens":
                await self._mutated_tokens(node)
            else:
                await self._mutated_report(node, kind)
        finally:
            await node.close()

    async def _mutated_report(self, node: RogueNode, kind: str) -> None:
        """A message to the router."""
        messages: dict[str, Any] = {
            "status": full(node.status),
            "events": KvEvents(sequence=1, cleared=False, removed=[1, 2], stored=[3, 4]),
            "snapshot": KvSnapshot(sequence=1, first=True, last=True, stored=[5, 6]),
            "rejected": Rejected("a", "b", "queue_full", "because"),
        }
        frame, mutation = mutated(messages[kind], self._rng)
        self.findings.sent[kind] += 1
        if len(frame) >= LINK.cut_off_bytes:
            # libzmq closes the connection, and nobody sees whose it was.
            node.send(frame)
            return
        malformed = len(frame) > LINK.frame_bytes or not decodes(frame, NodeToRouter)
        began = time.monotonic()
        node.send(frame)
        if malformed:
            await self._fenced(node, began, f"{kind} with {mutation}")

    async def _mutated_tokens(self, node: RogueNode) -> None:
        """A message to a detokenizer, about a request of the node, and with a mistake that can be
        seen: nobody but the node knows the right tokens."""
        try:
            async with asyncio.timeout(REQUEST_S):
                await node.asked.wait()
        except TimeoutError:
            return
        request = node.requests[-1]
        while True:
            frame, mutation = mutated(entry(request, [1], finish=None), self._rng)
            if not plausible(frame, request, self._model):
                break
        self.findings.sent["tokens"] += 1
        began = time.monotonic()
        node.push(request.detokenizer, frame)
        if blamed(frame, request, self._model):
            await self._fenced(node, began, f"tokens with {mutation}")

    # --- mischief -----------------------------------------------------------------------------

    async def misbehave(self, name: str) -> None:
        """One rogue that does one kind of mischief, until it is fenced or has had its chance."""
        act, breach = MISCHIEF[name]
        node = await self._join(on_request=act)
        try:
            async with asyncio.timeout(JOIN_S):
                await node.asked.wait()
            self.findings.sent[name] += 1
            if breach:
                await self._fenced(node, node.first_request_s, name)
            else:
                await asyncio.sleep(FENCED_WITHIN_S)
        except TimeoutError:
            self.findings.late.append(f"{name}: it got no request within {JOIN_S:.0f} s")
        finally:
            await node.close()

    # --- what is seen -------------------------------------------------------------------------

    async def _join(self, on_request: Mischief = swallow) -> RogueNode:
        node = RogueNode(
            self._context,
            self._fleet.node_address,
            next(self._names),
            self._info,
            self._model,
            security=self._security,
            on_request=on_request,
        )
        async with asyncio.timeout(JOIN_S):
            await node.joined.wait()
        return node

    async def _fenced(self, node: RogueNode, began: float, what: str) -> None:
        """Wait until a node is fenced, and let its name in again."""
        self.findings.breaches += 1
        deadline = began + FENCED_WITHIN_S
        while True:
            asked = time.monotonic()
            if (await self._look(node.name)).fenced:
                self.findings.fenced_s.append(asked - began)
                break
            if asked > deadline:
                self.findings.late.append(f"{node.name}, {what}: not fenced")
                break
            await asyncio.sleep(POLL_S)
        url = f"{self._fleet.url}/admin/undrain/{node.name}"
        async with self._session.post(url, headers=ADMIN_HEADERS) as response:
            response.raise_for_status()

    async def _look(self, node: str) -> Seen:
        async with self._session.get(f"{self._fleet.url}/fleet") as response:
            fleet = msgspec.json.decode(await response.read(), type=FleetView)
        return next((seen for seen in fleet.nodes if seen.name == node), Seen(node, "dead"))


def full(status: NodeStatus) -> NodeStatus:
    """A report in which every field has something that can be mutated."""
    assert status.model is not None
    return structs.replace(
        status,
        model=structs.replace(
            status.model, eos_ids=[2], windowed=[(128, 64)], passes=[PassTime(1, 0, 0.01)]
        ),
        telemetry=Telemetry(source="rogue", gpu_temperature_c=40.0, failures={"power": 1}),
        loading=LoadProgress(stage="reading", loaded_bytes=1, total_bytes=2, remaining_s=1.0),
        metrics_address="127.0.0.1:9999",
    )


def decodes(frame: bytes, kind: Any) -> bool:
    """Whether a frame is a message."""
    try:
        msgspec.msgpack.decode(frame, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return False
    return True


def judge(frame: bytes, request: Generate, model: ModelInfo) -> str:
    """What a detokenizer should make of a frame: "broken" or "true" tokens of a request, or "other"
    things, which it drops."""
    mine = ([request.rid], [request.attempt])
    if not decodes(frame, Tokens):
        if not decodes(frame, TokensOf):
            return "other"
        named = msgspec.msgpack.decode(frame, type=TokensOf)
        both = zip(named.rids, named.attempts, strict=False)
        return "broken" if (request.rid, request.attempt) in both else "other"
    tokens = msgspec.msgpack.decode(frame, type=Tokens)
    if (tokens.rids, tokens.attempts) != mine:
        return "other"
    try:
        check_entry(
            tokens.starts[0],
            tokens.ids[0],
            tokens.finish.get(0),
            tokens.logprobs.get(0, []),
            request.sampling.max_tokens,
            highest_id(model.vocab_size),
        )
    except BrokenError:
        return "broken"
    return "true"


def plausible(frame: bytes, request: Generate, model: ModelInfo) -> bool:
    """Whether tokens are such as a node could send."""
    return judge(frame, request, model) == "true"


def blamed(frame: bytes, request: Generate, model: ModelInfo) -> bool:
    """Whether a frame shows whose it is, and that it cannot be."""
    return judge(frame, request, model) == "broken"


def readiness(session: aiohttp.ClientSession) -> Callable[[str], Awaitable[str]]:
    """Asks a router whether all honest nodes are ready; "" if they are."""

    async def ask(url: str) -> str:
        try:
            async with session.get(f"{url}/fleet") as response:
                fleet = msgspec.json.decode(await response.read(), type=FleetView)
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
            return f"/fleet: {error!r}"
        ready = [node.name for node in fleet.nodes if node.state in ("ready", "busy")]
        return "" if len(ready) == HONEST else f"only {ready} are ready"

    return ask


async def samples(session: aiohttp.ClientSession, url: str) -> dict[tuple[str, str], float]:
    """Memory and restarts of front-end processes, by metric and process."""
    async with session.get(f"{url}/metrics") as response:
        if response.status != 200:
            raise ServerError(f"/metrics answered {response.status}")
        text = await response.text()
    wanted = ("mlxfleet_process_memory_bytes", "mlxfleet_process_restarts_total")
    return {
        (sample.name, sample.labels["process"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in wanted and sample.labels["process"].startswith(FRONT)
    }


def model_info(figures: dict[str, Any]) -> ModelInfo:
    """What a rogue says of its model: what honest nodes say, and more."""
    return ModelInfo(
        vocab_size=figures["vocab_size"],
        context_length=2**20,
        eos_ids=[],
        kv_budget_bytes=2**50,
        fixed_bytes=0,
        bytes_per_token=1,
        windowed=[],
        weights_bytes=0,
        cold_blocks=1000,
    )
