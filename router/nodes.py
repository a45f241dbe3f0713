"""The router's side of the compute nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import UnavailableError
from mlxfleet.common.liveness import PROBE_AFTER_S
from mlxfleet.common.messages import ModelInfo, NodeStatus, NodeToRouter, Rejected, RouterToNode
from mlxfleet.router.breaker import Breaker, BreakerState
from mlxfleet.router.health import NodeHealth, State
from mlxfleet.router.pool import Greeting, Pool

log = logging.getLogger(__name__)

# A node that comes back later is a new one.
FORGET_AFTER_S = 600.0
QUEUED_SHARE = 0.25


class Nodes:
    """Knows each node's last report and health, and sends requests to them.

    `on_rejected` takes a node's name and its refusal; `on_fresh` the name of a node that has
    restarted; `on_change` is called when requests may have become welcome somewhere.
    `detokenizers` gives the addresses that nodes send tokens to.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        session: str,
        *,
        detokenizers: Callable[[], dict[str, str]],
        on_rejected: Callable[[str, Rejected], None],
        on_fresh: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.pool = Pool(channels.server(context, NodeToRouter, address), session)
        self.status: dict[str, NodeStatus] = {}
        self.breakers: dict[str, Breaker] = {}
        self._health: dict[str, NodeHealth] = {}
        self._states: dict[str, State] = {}
        self._detokenizers = detokenizers
        self._on_rejected = on_rejected
        self._on_fresh = on_fresh
        self._on_change = on_change
        self._changed = asyncio.Event()
        self.pool.channel.attach(self._on_message)

    @property
    def model(self) -> ModelInfo | None:
        """The model, as soon as a node has loaded it."""
        return next((s.model for s in self.status.values() if s.model is not None), None)

    def state(self, node: str) -> State:
        """What a node was doing when it was last looked at."""
        return self._states.get(node, State.DEAD)

    def silent_s(self, node: str) -> float:
        """Seconds since a node's last report."""
        return self._health[node].silent_s(time.monotonic())

    def tokens_per_s(self, node: str) -> float:
        """Tokens that a node has lately generated in a second, none if it is lost."""
        return self._health[node].tokens_per_s if self.state(node).well else 0.0

    def breaker_state(self, node: str) -> BreakerState:
        """Whether a node gets requests again after faults."""
        return self.breakers[node].state(time.monotonic())

    def capacity(self) -> int | None:
        """Sequences that may be on the ready nodes at once, with those that wait there for a place
        so that none is free for long; None without a ready node."""
        ready = self.ready()
        ahead = [min(s.max_queue, int(QUEUED_SHARE * s.max_running) + 1) for s in ready]
        return sum(s.max_running for s in ready) + sum(ahead) if ready else None

    def ready(self) -> list[NodeStatus]:
        """Nodes that may get a request now."""
        now = time.monotonic()
        takes = (State.READY, State.BUSY)
        return [
            status
            for name, status in self.status.items()
            if self._states[name] in takes and self.breakers[name].allows(now)
        ]

    def drain(self, node: str, draining: bool) -> bool:
        """Give a node no more requests, or some again; False if it is unknown."""
        health = self._health.get(node)
        if health is None:
            return False
        health.draining = draining
        log.info("%s %s", node, "is draining" if draining else "takes requests again")
        self._look(node, time.monotonic())
        return True

    def look(self, now: float) -> None:
        """Find out how every node is. One that is silent is sent something, which fails at once if
        its socket is closed."""
        for name, health in list(self._health.items()):
            if health.silent_s(now) > FORGET_AFTER_S:
                self._forget(name)
                continue
            if health.silent_s(now) > PROBE_AFTER_S and not self.pool.reaches(name):
                health.link_closed()
            self._look(name, now)

    def requested(self, node: str, rid: str) -> None:
        """A request goes to a node."""
        self.breakers[node].sent(rid, time.monotonic())

    def brought_tokens(self, node: str, rid: str) -> None:
        """A node has brought tokens of a request."""
        if (breaker := self.breakers.get(node)) is not None:
            breaker.succeeded(rid)

    def probe_ended(self, node: str, rid: str) -> None:
        """A request has left a node, whether it brought tokens or not."""
        if (breaker := self.breakers.get(node)) is not None:
            breaker.probe_ended(rid)

    def failed(self, node: str) -> None:
        """A node has given up a request."""
        if (breaker := self.breakers.get(node)) is not None:
            breaker.fault(time.monotonic())

    def _tell(self) -> None:
        self._changed.set()
        self._on_change()

    def _forget(self, name: str) -> None:
        log.info("%s has been away for long and is forgotten", name)
        for known in (self.status, self.breakers, self._health, self._states, self.pool.peers):
            known.pop(name, None)

    def _look(self, name: str, now: float) -> None:
        before, state = self._states.get(name), self._health[name].state(now)
        if state is before:
            return
        self._states[name] = state
        if before is not None and before.well and not state.well:
            log.warning("%s is %s", name, state)
            self.breakers[name].fault(now)
        self._tell()

    async def pick(self, load: Callable[[str], int], wait_s: float) -> str:
        """The ready node with the least load; waits for one, UnavailableError after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not (ready := self.ready()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise UnavailableError("no node can generate now", retry_after_s=5) from error
        return min(ready, key=lambda status: load(status.name)).name

    def send(self, node: str, message: RouterToNode) -> bool:
        """Send to a node; False if it is gone. It gets its requests again when it is back."""
        return self.pool.send(node, message)

    def _on_message(self, sender: bytes, message: NodeToRouter) -> None:
        match message:
            case NodeStatus():
                self._on_status(sender, message)
            case Rejected():
                if (node := self.pool.name_of(sender)) is not None:
                    self._on_rejected(node, message)

    def _on_status(self, sender: bytes, status: NodeStatus) -> None:
        greeting = self.pool.greet(sender, status, self._detokenizers())
        if greeting is Greeting.REFUSED:
            return
        now = time.monotonic()
        self.status[status.name] = status
        self.breakers.setdefault(status.name, Breaker())
        self._health.setdefault(status.name, NodeHealth(status, now)).report(status, now)
        self._look(status.name, now)
        self._tell()
        if greeting is Greeting.FRESH:
            self._on_fresh(status.name)
