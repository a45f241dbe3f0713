"""The router's side of the compute nodes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import zmq

from mlxfleet.common import channels
from mlxfleet.common.buckets import Bucket
from mlxfleet.common.curve import CurveServer
from mlxfleet.common.key_files import NAME
from mlxfleet.common.limits import reason as as_reason
from mlxfleet.common.liveness import PROBE_AFTER_S
from mlxfleet.common.messages import (
    PROTOCOL_VERSION,
    KvEvents,
    KvSnapshot,
    Leaving,
    LoadProgress,
    NodeStatus,
    NodeToRouter,
    Rejected,
    RouterToNode,
    SendKvSnapshot,
)
from mlxfleet.router.breaker import Breaker, BreakerState
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.claims import NameClaims, Verdict
from mlxfleet.router.fences import Breach, Fence, Fences
from mlxfleet.router.health import NodeHealth, State
from mlxfleet.router.limits import Limits, largest
from mlxfleet.router.outages import Outages
from mlxfleet.router.places import Capacity
from mlxfleet.router.pool import Greeting, Pool
from mlxfleet.router.routing import Routing

log = logging.getLogger(__name__)

# A node that comes back later is a new one.
FORGET_AFTER_S = 600.0
QUEUED_SHARE = 0.25
MAX_NODES = 1024
# In the place of a context length that no node has said yet.
UNKNOWN_CONTEXT = 1 << 24
# The largest message of a node has 1,024 hashes of 9 bytes.
LINK = channels.Limits(frame_bytes=256 * 1024, messages=512, origins=True)
# A node reports four times a second and tells of its cache fifty times; a snapshot is a burst.
MESSAGES_PER_S = 300.0
MESSAGES_AT_ONCE = 6000.0
# Messages about blocks that come and go can cross by so many.
BLOCKS_ASTRAY = 32_768
# Logs about what is not in the fleet.
STRANGERS_PER_S = 0.2


class Nodes:
    """Knows each node's last report and health, and sends requests to them.

    `on_rejected` takes a node's name and its refusal; `on_fresh` the name of a node that has
    restarted; `on_change` is called when requests may have become welcome somewhere, `on_state`
    when a node's state has changed.
    `on_refused` takes a word for why a node was not let in, `on_fenced` a node's name and what
    it did, `on_forgotten` the name of one that has been away for long.
    `detokenizers` gives the addresses that nodes of a model send tokens to. `routing`
    hears what nodes report.
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
        routing: Routing,
        on_change: Callable[[], None],
        on_state: Callable[[], None],
        on_refused: Callable[[str], None],
        on_fenced: Callable[[str, Breach], None],
        on_forgotten: Callable[[str], None],
        security: CurveServer | None = None,
    ) -> None:
        channel = channels.server(
            context, NodeToRouter, address, security, limits=LINK, on_malformed=self._on_malformed
        )
        self.pool = Pool(channel, session)
        self.fences = Fences()
        self._fenced: dict[str, Fence] = {}
        self._origins: dict[str, channels.Origin] = {}
        self._buckets: dict[str, Bucket] = {}
        self._strangers = Bucket(STRANGERS_PER_S, 5)
        self.status: dict[str, NodeStatus] = {}
        self.breakers: dict[str, Breaker] = {}
        self._health: dict[str, NodeHealth] = {}
        self._states: dict[str, State] = {}
        self._models: dict[str, str] = {}
        self._catalog = catalog
        self._claims = NameClaims()
        self._detokenizers = detokenizers
        self._on_rejected = on_rejected
        self._on_fresh = on_fresh
        self._on_change = on_change
        self._on_state = on_state
        self._on_refused = on_refused
        self._on_fenced = on_fenced
        self._on_forgotten = on_forgotten
        self._routing = routing
        self._outages = Outages()
        self._limits: dict[str, Limits] = {}
        self.pool.channel.attach(self._on_message)

    def close(self) -> None:
        """Tell every node that the router ends as it should, and close the link."""
        for name in self.pool.peers:
            self.pool.send(name, Leaving())
        self.pool.channel.close(linger_s=channels.GOODBYE_S)

    def limits(self, model: str, tokens: int) -> Limits | None:
        """What a model's largest living node can take, if that is so many tokens or no other node
        could take them either. None while one that could is lost or loading, and while no node is
        known; if all are lost, what the largest of those could take that are big enough."""
        living = largest(self._known_limits(model, living=True))
        if living is not None and (living.tokens >= tokens or not self._may_take(model, tokens)):
            return living
        known = largest(self._known_limits(model, living=False))
        return known if living is None and known is not None and known.tokens >= tokens else None

    def longest_context(self, model: str) -> int:
        """The longest context of a model's nodes, in tokens, whether they are there or not."""
        unknown = self._catalog.context_length(model) or UNKNOWN_CONTEXT
        known = [limits.model.context_length for limits in self._known_limits(model, living=False)]
        loading = [
            min((status.loading.context_length if status.loading else 0) or unknown, unknown)
            for name, status in self.status.items()
            if self._models[name] == model
            and name not in self._limits
            and status.worker == "loading"
        ]
        return max(known + loading, default=unknown)

    def loads(self, model: str, tokens: int = 1) -> bool:
        """Whether a node of a model gets on with loading that could then take so many tokens."""
        now = time.monotonic()
        return any(
            self._models[name] == model
            and self._states[name] is not State.FENCED
            and health.loads(now)
            and self._may_fit(name, tokens)
            for name, health in self._health.items()
        )

    def loading(self) -> dict[str, LoadProgress]:
        """How far each node is that loads."""
        return {
            name: status.loading
            for name, status in self.status.items()
            if status.loading is not None and self._states[name] is State.LOADING
        }

    def _known_limits(self, model: str, *, living: bool) -> list[Limits]:
        """Limits of a model's nodes that have ever loaded it, of all or of those that live."""
        return [
            limits
            for name, limits in self._limits.items()
            if self._models[name] == model
            and self._states[name] is not State.FENCED
            and (not living or self._states[name].well)
        ]

    def _may_take(self, model: str, tokens: int) -> bool:
        """Whether a node that is lost or loading could take so many tokens if it were there."""
        return any(
            self._models[name] == model
            and not self._states[name].well
            and self._states[name] is not State.FENCED
            and (name in self._limits or status.worker == "loading")
            and self._may_fit(name, tokens)
            for name, status in self.status.items()
        )

    def _may_fit(self, node: str, tokens: int) -> bool:
        """Whether so many tokens fit on a node, as far as that is known."""
        if (limits := self._limits.get(node)) is not None:
            return limits.tokens >= tokens
        loading = self.status[node].loading
        context = loading.context_length if loading is not None else 0
        return not context or context >= tokens

    def state(self, node: str) -> State:
        """What a node was doing when it was last looked at."""
        return self._states.get(node, State.DEAD)

    def present(self) -> set[str]:
        """Nodes that are neither dead nor fenced, so that what they have cached counts."""
        gone = (State.DEAD, State.FENCED)
        return {name for name, state in self._states.items() if state not in gone}

    def address_of(self, node: str) -> str:
        """The IP address that a node is connected from, "" if it is on this machine's sockets."""
        return self._origins[node].address

    def silent_s(self, node: str) -> float:
        """Seconds since a node's last report."""
        return self._health[node].silent_s(time.monotonic())

    def tokens_per_s(self, node: str) -> float:
        """Tokens that a node has lately generated in a second, none if it is lost."""
        return self._health[node].tokens_per_s if self.state(node).well else 0.0

    def breaker_state(self, node: str) -> BreakerState:
        """Whether a node gets requests again after faults."""
        return self.breakers[node].state(time.monotonic())

    def breaker_open_s(self, node: str) -> float:
        """Seconds until a node gets a request again after faults, 0 if it may now."""
        return self.breakers[node].closes_in_s(time.monotonic())

    def capacity(self, model: str) -> Capacity | None:
        """Sequences that may be on a model's ready nodes at once, with those that wait there for a
        place so that none is free for long; None without a ready node. With one node nothing is
        left to choose, so as many may wait there as could start at once. Half of what nodes can
        queue is left to those that others keep waiting."""
        ready = self.ready(model)
        if not ready:
            return None
        share = QUEUED_SHARE if len(ready) > 1 else 1.0
        ahead = [min(math.ceil(s.max_queue / 2), math.ceil(share * s.max_running)) for s in ready]
        running = sum(status.max_running for status in ready)
        return Capacity(running + sum(ahead), running + sum(s.max_queue for s in ready))

    def takes_requests(self, node: str) -> bool:
        """Whether a node may get a request now."""
        model = self._models.get(node)
        return model is not None and any(s.name == node for s in self.ready(model))

    def model_of(self, node: str) -> str:
        """The name of a known node's model in the API."""
        return self._models[node]

    def ready(self, model: str | None = None, tokens: int = 1) -> list[NodeStatus]:
        """Nodes that may get a request of so many tokens now, prompt and answer, with a certain
        model or with any."""
        now = time.monotonic()
        takes = (State.READY, State.BUSY)
        return [
            status
            for name, status in self.status.items()
            if self._states[name] in takes
            and model in (None, self._models[name])
            and self.breakers[name].allows(now)
            and self._may_fit(name, tokens)
        ]

    def drain(self, node: str, draining: bool) -> bool:
        """Give a node no more requests, or some again; False if it is unknown."""
        health = self._health.get(node)
        if health is None:
            return False
        health.draining = draining
        if not draining and self.fences.lift(node, self._origins[node]):
            log.info("%s is not fenced any more, as an operator wishes", node)
            self._fenced.pop(node, None)
        log.info("%s %s", node, "is draining" if draining else "takes requests again")
        self._look(node, time.monotonic())
        return True

    def look(self, now: float) -> None:
        """Find out how every node is. One that is silent is sent something, which fails at once if
        its socket is closed."""
        for name, health in list(self._health.items()):
            if health.silent_s(now) > FORGET_AFTER_S:
                log.info("%s has been away for long and is forgotten", name)
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

    def breach(self, node: str, kind: Breach, why: str) -> None:
        """A node did what no node may do: it is fenced."""
        if node not in self._origins:
            return
        now = time.monotonic()
        origin = self._origins[node]
        if self.fences.breach(node, origin, self._honest(node), why, now):
            self._on_fenced(node, kind)
        self._guard(node, now)
        self._look(node, now)

    def doubt(self, node: str, kind: Breach, why: str) -> None:
        """A node did what an honest one may do by an accident of timing; fenced if it repeats."""
        if self.fences.doubt(node, kind, time.monotonic()):
            self.breach(node, kind, why)

    def worker_failed(self, node: str, restarts: int) -> bool:
        """Whether a lost node's worker failed, which its work may have caused: see NodeHealth."""
        health = self._health.get(node)
        return health is not None and health.worker_failed(restarts, time.monotonic())

    def fence_of(self, node: str) -> str:
        """Why a node is fenced; "" if it is not."""
        return self._fenced[node].why if self.state(node) is State.FENCED else ""

    def _honest(self, but: str) -> list[channels.Origin]:
        """Where the other nodes in good standing come from."""
        return [o for name, o in self._origins.items() if name not in self._fenced and name != but]

    def _guard(self, name: str, now: float) -> None:
        """Note whether a node is behind a fence, which may be that of its key or address."""
        fence = self.fences.closed(name, self._origins[name], self._honest(name), now)
        if fence is not None:
            self._fenced[name] = fence

    def _forget(self, name: str) -> None:
        by_name = (
            self.status,
            self.breakers,
            self._health,
            self._states,
            self._models,
            self._limits,
        )
        of_link = (self._origins, self._buckets, self._fenced)
        for known in (self.pool.peers, *by_name, *of_link):
            known.pop(name, None)
        self._outages.forget(name)
        self._on_forgotten(name)

    def _look(self, name: str, now: float) -> None:
        health = self._health[name]
        before, state = self._states.get(name), health.state(now)
        if (fence := self._fenced.get(name)) is not None:
            if now < fence.until:
                state = State.FENCED
            else:
                del self._fenced[name]
        if state.well:
            self._outages.ended(name, health, now)
        if state is before:
            return
        self._states[name] = state
        if before is State.FENCED:
            log.info("%s is not fenced any more", name)
            # What it said of its requests meanwhile was not heard.
            self._on_fresh(name)
        if before is not None and before.well and not state.well:
            if health.left:
                log.info("%s has left", name)
            else:
                self._outages.began(name, state, health, now)
                self.breakers[name].fault(now)
        self._on_state()
        self._on_change()

    def send(self, node: str, message: RouterToNode) -> bool:
        """Send to a node; False if it is gone. It gets its requests again when it is back."""
        return self.pool.send(node, message)

    def _on_message(self, sender: bytes, message: NodeToRouter) -> None:
        """Take in a message. Should that fail, it is only this message that is lost."""
        node = self.pool.name_of(sender)
        if node is not None and not self._buckets[node].take():
            self.breach(node, "flood", f"more than {MESSAGES_PER_S:.0f} messages a second")
        try:
            if isinstance(message, NodeStatus):
                self._on_status(sender, message)
            elif node is not None and self.state(node) is not State.FENCED:
                self._on_work(node, message)
        except Exception:
            log.exception("a message of %s could not be handled", node or "an unknown node")
            if node is not None:
                self.doubt(node, "error", "its messages cannot be handled; the log has a traceback")

    def _on_work(self, node: str, message: KvEvents | KvSnapshot | Rejected | Leaving) -> None:
        match message:
            case Leaving():
                self._health[node].leave()
                self._look(node, time.monotonic())
            case Rejected():
                self._on_rejected(node, message)
            case KvEvents() | KvSnapshot():
                if self._routing.on_cache(node, message):
                    self.send(node, SendKvSnapshot())
                model = self.status[node].model
                most = (model.cold_blocks if model is not None else 0) + BLOCKS_ASTRAY
                if self._routing.index.blocks_of(node) > most:
                    self.breach(node, "flood", "more cached blocks than its cache has")

    def _on_malformed(self, sender: bytes, why: str, frame: bytes) -> None:
        """Hold a frame that is no message against the node that sent it."""
        if (node := self.pool.name_of(sender)) is not None:
            self.breach(node, "malformed", f"a malformed message: {why}")
        elif self._strangers.take():
            log.warning("dropped a malformed frame of an unknown node: %s", as_reason(why))

    def _on_status(self, sender: bytes, status: NodeStatus) -> None:
        if not self._may_join(sender, status):
            return
        now = time.monotonic()
        model = self._catalog.model_of(status.info) or ""
        greeting = self.pool.greet(sender, status, self._detokenizers(model), model)
        if greeting is Greeting.REFUSED:
            self._on_refused("version")
            return
        self._models[status.name] = model
        if greeting is not Greeting.FRESH and self._changed(status):
            self.breach(status.name, "malformed", "the model that it has loaded changes")
            return
        self._note_limits(status)
        self.status[status.name] = status
        self.breakers.setdefault(status.name, Breaker())
        self._buckets.setdefault(status.name, Bucket(MESSAGES_PER_S, MESSAGES_AT_ONCE))
        if greeting is Greeting.FRESH:
            self._origins[status.name] = self.pool.channel.origin
            self._guard(status.name, now)
        self._health.setdefault(status.name, NodeHealth(status, now)).report(status, now)
        self._look(status.name, now)
        self._on_change()
        if self.state(status.name) is State.FENCED:
            return
        if self._routing.on_status(status, fresh=greeting is Greeting.FRESH):
            self.send(status.name, SendKvSnapshot())
        if greeting is Greeting.FRESH:
            self._on_fresh(status.name)

    def _changed(self, status: NodeStatus) -> bool:
        """Whether what a running worker has loaded is not what it had."""
        before = self.status[status.name]
        same_worker = before.worker_restarts == status.worker_restarts
        models = (before.model, status.model)
        return same_worker and None not in models and models[0] != models[1]

    def _note_limits(self, status: NodeStatus) -> None:
        """Remember what a node can take, also for when it is lost or loads again; another run under
        its name may have other limits."""
        before = self.status.get(status.name)
        if before is not None and before.info.instance != status.info.instance:
            self._limits.pop(status.name, None)
            before = None
        if status.model is None or (before is not None and before.model == status.model):
            return
        model = self._catalog.bounded(self._models[status.name], status.model)
        self._limits[status.name] = Limits.of(model)

    def _may_join(self, sender: bytes, status: NodeStatus) -> bool:
        """Whether a report is from a node that is in, or may come in now."""
        known = self.pool.peers.get(status.name)
        if status.version != PROTOCOL_VERSION:
            return True  # The pool refuses it.
        if known is not None and known.incarnation == status.incarnation:
            return True
        if (owner := self.pool.name_of(sender)) is not None:
            # A new run has a connection of its own.
            self.breach(owner, "malformed", "it says on one connection that it is two nodes")
            return False
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
        self._forget(oldest.name)
        return True

    def _refuse(self, sender: bytes, status: NodeStatus, word: str, reason: str) -> bool:
        reason = as_reason(reason)
        self.pool.refuse(sender, status.name, reason)
        self._on_refused(word)
        return False
