"""The router's side of the compute nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import UnavailableError
from mlxfleet.common.messages import (
    KvEvents,
    KvSnapshot,
    ModelInfo,
    NodeStatus,
    NodeToRouter,
    Rejected,
    RouterToNode,
    SendKvSnapshot,
)
from mlxfleet.router.pool import Greeting, Pool
from mlxfleet.router.routing import Routing


class Nodes:
    """Knows each node's last report and sends requests to them.

    `on_rejected` takes a node's name and its refusal; `on_fresh` the name of a node that has
    restarted.
    `detokenizers` gives the addresses that nodes send tokens to. `routing` hears what nodes report.
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
        routing: Routing,
    ) -> None:
        self.pool = Pool(channels.server(context, NodeToRouter, address), session)
        self.status: dict[str, NodeStatus] = {}
        self._detokenizers = detokenizers
        self._on_rejected = on_rejected
        self._on_fresh = on_fresh
        self._routing = routing
        self._changed = asyncio.Event()
        self.pool.channel.attach(self._on_message)

    @property
    def model(self) -> ModelInfo | None:
        """The model, as soon as a node has loaded it."""
        return next((s.model for s in self.status.values() if s.model is not None), None)

    def ready(self) -> list[NodeStatus]:
        """Nodes that can generate now."""
        alive = {peer.name for peer in self.pool.alive()}
        return [s for s in self.status.values() if s.name in alive and s.can_generate]

    async def pick(self, choose: Callable[[list[NodeStatus]], str], wait_s: float) -> str:
        """What is chosen of the ready nodes; waits for one, UnavailableError after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not (ready := self.ready()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise UnavailableError("no node can generate now", retry_after_s=5) from error
        return choose(ready)

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
            case KvEvents() | KvSnapshot():
                node = self.pool.name_of(sender)
                if node is not None and self._routing.on_cache(node, message):
                    self.send(node, SendKvSnapshot())

    def _on_status(self, sender: bytes, status: NodeStatus) -> None:
        greeting = self.pool.greet(sender, status, self._detokenizers())
        if greeting is Greeting.REFUSED:
            return
        self.status[status.name] = status
        self._changed.set()
        if self._routing.on_status(status, fresh=greeting is Greeting.FRESH):
            self.send(status.name, SendKvSnapshot())
        if greeting is Greeting.FRESH:
            self._on_fresh(status.name)
