"""Scheduler and worker over their real sockets, without router, tokenizer, detokenizer and HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import zmq

from mlxfleet.bench.client_cost import CostMeter
from mlxfleet.bench.figures import distribution, ttft_s
from mlxfleet.bench.offline.engine import Engine, processes
from mlxfleet.bench.offline.work import Ended, Outcome, Pair, Part, Prompt, make_request, run_pairs
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import ServerError
from mlxfleet.common import channels
from mlxfleet.common.fleet_specs import Node, node_specs
from mlxfleet.common.liveness import new_incarnation
from mlxfleet.common.messages import (
    Generate,
    NodeStatus,
    NodeToDetokenizer,
    NodeToRouter,
    Rejected,
    Release,
    RouterToNode,
    Sampling,
    Tokens,
    Welcome,
)
from mlxfleet.common.node_identity import node_info
from mlxfleet.common.runtime import runtime_folder

# Nothing is sent twice here.
ATTEMPT = "only"
DETOKENIZER = "bench"
# Without any token for so long, the node is taken for dead.
SILENCE_S = 120.0


class Stream:
    """A sequence under way: when its tokens came, in s since its sending."""

    def __init__(self, index: int, prompt: Prompt, sent_s: float) -> None:
        self.index = index
        self.prompt = prompt
        self.sent_s = sent_s
        self.times_s: list[float] = []


class PartRun:
    """A part in progress: as many sequences at once as there are streams."""

    def __init__(self, part: Part, front: NodeFront) -> None:
        self._part = part
        self._front = front
        self._next = 0
        self._streams: dict[str, Stream] = {}
        self._began = time.perf_counter()
        self._last_token_s = 0.0
        self.requests: list[Request] = []
        self.failure: str | None = None

    @property
    def _now_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def over(self) -> bool:
        """Whether all has come, or nothing will."""
        return self.failure is not None or len(self.requests) == len(self._part.prompts)

    def start(self) -> None:
        """Send what may be under way at once."""
        for _ in range(min(self._part.concurrency, len(self._part.prompts))):
            self._send_next()

    def _send_next(self) -> None:
        if self._next == len(self._part.prompts):
            return
        prompt, rid = self._part.prompts[self._next], f"{id(self)}-{self._next}"
        self._streams[rid] = Stream(self._next, prompt, self._now_s)
        self._next += 1
        sampling = Sampling(
            seed=0, max_tokens=self._part.max_tokens, temperature=0.0, ignore_eos=True
        )
        self._front.send(
            Generate(
                rid=rid,
                attempt=ATTEMPT,
                detokenizer=DETOKENIZER,
                prompt_ids=prompt.ids,
                output_ids=[],
                sampling=sampling,
            )
        )

    def on_tokens(self, message: Tokens) -> None:
        """One step's tokens; a sequence that ends makes room for the next."""
        self._last_token_s = now_s = self._now_s
        for position, rid in enumerate(message.rids):
            if (stream := self._streams.get(rid)) is None:
                continue
            stream.times_s += [now_s - stream.sent_s] * len(message.ids[position])
            if position in message.finish:
                del self._streams[rid]
                self._front.send(Release(rid, ATTEMPT))
                request = make_request(stream.index, stream.prompt, stream.sent_s, stream.times_s)
                self.requests.append(request)
                self._send_next()

    def check(self) -> None:
        """ServerError if nothing comes any more."""
        if self.failure is not None:
            raise ServerError(f"the scheduler does not do its work: {self.failure}")
        if self._now_s - self._last_token_s > SILENCE_S:
            raise ServerError(f"scheduler and worker gave no token for {SILENCE_S:.0f} s")


class NodeFront:
    """Stands for a router and a detokenizer, as far as one node can tell."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], runtime: Path) -> None:
        self.router_address = f"ipc://{runtime}/nodes.sock"
        self._token_address = f"ipc://{runtime}/tokens.sock"
        self._session = new_incarnation()
        self._node = b""
        self._run: PartRun | None = None
        self._changed = asyncio.Event()
        self._nodes: channels.Channel[NodeToRouter, RouterToNode] = channels.server(
            context, NodeToRouter, self.router_address
        )
        self._tokens: channels.Channel[NodeToDetokenizer, None] = channels.Channel(
            context, zmq.PULL, NodeToDetokenizer, bind=self._token_address
        )
        self._nodes.attach(self._on_node)
        self._tokens.attach(self._on_tokens)

    def send(self, message: RouterToNode) -> None:
        """To the node; the part that runs fails if it is gone."""
        if not self._nodes.send(message, to=self._node) and self._run is not None:
            self._run.failure = "it is gone"
            self._changed.set()

    async def run(self, part: Part) -> Outcome:
        """Run a part to its end; ServerError if the node does not do it."""
        meter = CostMeter()
        async with meter.measuring():
            self._run = run = PartRun(part, self)
            run.start()
            while not run.over:
                run.check()
                self._changed.clear()
                try:
                    async with asyncio.timeout(1.0):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            self._run = None
        run.check()
        firsts = [first for request in run.requests if (first := ttft_s(request)) is not None]
        return Outcome(run.requests, meter.cost([], [distribution(firsts)]))

    def close(self) -> None:
        """Close the links."""
        self._nodes.close()
        self._tokens.close()

    def _on_node(self, sender: bytes, message: NodeToRouter) -> None:
        match message:
            case NodeStatus():
                self._node = sender
                welcome = Welcome(self._session, {DETOKENIZER: self._token_address})
                self._nodes.send(welcome, to=sender)
            case Rejected() if self._run is not None:
                self._run.failure = message.message
                self._changed.set()
            case _:
                pass

    def _on_tokens(self, _: bytes, message: Tokens) -> None:
        if self._run is None:
            return
        self._run.on_tokens(message)
        if self._run.over:
            self._changed.set()


async def node(engine: Engine, pairs: Sequence[Pair], ended: Ended) -> None:
    """Start a node, run everything at its token-level border, stop it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with runtime_folder() as runtime:
        front = NodeFront(context, runtime)
        described = Node(
            name="node-0",
            model_dir=engine.model_dir,
            router_address=front.router_address,
            scheduler=engine.scheduler,
            worker=engine.worker,
            info=node_info(engine.name, engine.model_dir),
        )
        try:
            async with processes(node_specs(described, runtime)):
                await run_pairs(front.run, pairs, ended)
        finally:
            front.close()
            context.term()
