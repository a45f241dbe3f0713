"""The router's side of the compute nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from mlxfleet.common import channels
from mlxfleet.common.curve import CurveServer
from mlxfleet.common.errors import UnavailableError
from mlxfleet.common.key_files import NAME
from mlxfleet.common.messages import (
    PROTOCOL_VERSION,
    ModelInfo,
    NodeStatus,
    NodeToRouter,
    Rejected,
    RouterToNode,
)
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.claims import NameClaims, Verdict
from mlxfleet.router.pool import Greeting, Pool

log = logging.getLogger(__name__)

MAX_NODES = 1024


class Nodes:
    """Knows each node's last report and sends requests to them.

    `on_rejected` takes a node's name and its refusal; `on_fresh` the name of a node that has
    restarted; `on_refused` a word for why a node was not let in.
    `detokenizers` gives the addresses that nodes of a model send tokens to.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        session: str,
        *,
        catalog: Catalog,
        detokenizers: Callable[[str], dict[str, str]],
        on_rejected: Callable[[str, Rejected], None],
        on_fresh: Callable[[str], None],
        on_refused: Callable[[str], None],
        security: CurveServer | None = None,
    ) -> None:
        self.pool = Pool(channels.server(context, NodeToRouter, address, security), session)
        self.status: dict[str, NodeStatus] = {}
        self._models: dict[str, str] = {}
        self._catalog = catalog
        self._claims = NameClaims()
        self._detokenizers = detokenizers
        self._on_rejected = on_rejected
        self._on_fresh = on_fresh
        self._on_refused = on_refused
        self._changed = asyncio.Event()
        self.pool.channel.attach(self._on_message)

    def model_info(self, model: str) -> ModelInfo | None:
        """What a model can do, as soon as a node has loaded it."""
        statuses = (s for name, s in self.status.items() if self._models[name] == model)
        return next((s.model for s in statuses if s.model is not None), None)

    def model_of(self, node: str) -> str:
        """The name of a known node's model in the API."""
        return self._models[node]

    def ready(self, model: str | None = None) -> list[NodeStatus]:
        """Nodes that can generate now, with a certain model or with any."""
        alive = {peer.name for peer in self.pool.alive()}
        return [
            s
            for s in self.status.values()
            if s.name in alive and s.can_generate and model in (None, self._models[s.name])
        ]

    async def pick(self, model: str, load: Callable[[str], int], wait_s: float) -> str:
        """The model's ready node with the least load; waits for one, UnavailableError after
        `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not (ready := self.ready(model)):
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
        if not self._may_join(sender, status):
            return
        model = self._catalog.model_of(status.info) or ""
        greeting = self.pool.greet(sender, status, self._detokenizers(model))
        if greeting is Greeting.REFUSED:
            self._on_refused("version")
            return
        self._models[status.name] = model
        self.status[status.name] = status
        self._changed.set()
        if greeting is Greeting.FRESH:
            self._on_fresh(status.name)

    def _may_join(self, sender: bytes, status: NodeStatus) -> bool:
        """Whether a report is from a node that is in, or may come in now."""
        known = self.pool.peers.get(status.name)
        if status.version != PROTOCOL_VERSION:
            return True  # The pool refuses it.
        if known is not None and known.incarnation == status.incarnation:
            return True
        if (reason := self._catalog.refusal(status.info)) is not None:
            return self._refuse(sender, status, "model", reason)
        if known is None:
            return self._has_room(sender, status)
        if self.status[status.name].info.instance == status.info.instance or known.silent():
            return True
        match self._claims.judge(sender, known.last_seen, time.monotonic()):
            case Verdict.REFUSE:
                other = self.status[status.name].info.host
                reason = f"a node of that name is here already, on {other}; give another --name"
                return self._refuse(sender, status, "name", reason)
            case verdict:
                return verdict is Verdict.TAKE

    def _has_room(self, sender: bytes, status: NodeStatus) -> bool:
        """Make room for a new name: the node that has been gone longest is forgotten."""
        if NAME.fullmatch(status.name) is None:
            reason = "its name may have letters, digits, '.', '_' and '-' only"
            return self._refuse(sender, status, "name", reason)
        if len(self.pool.peers) < MAX_NODES:
            return True
        oldest = min(self.pool.peers.values(), key=lambda peer: peer.last_seen)
        if not oldest.silent():
            return self._refuse(sender, status, "full", f"{MAX_NODES} nodes are here already")
        for known in (self.pool.peers, self.status, self._models):
            known.pop(oldest.name, None)
        return True

    def _refuse(self, sender: bytes, status: NodeStatus, word: str, reason: str) -> bool:
        self.pool.refuse(sender, status.name, reason)
        self._on_refused(word)
        return False
