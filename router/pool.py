"""Processes of one kind that present themselves to the router over one socket."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Iterable
from typing import Any

from mlxfleet.common.buckets import Bucket
from mlxfleet.common.channels import Channel
from mlxfleet.common.limits import reason as as_reason
from mlxfleet.common.liveness import Peer
from mlxfleet.common.messages import PROTOCOL_VERSION, Hello, NodeStatus, Refused, Welcome

log = logging.getLogger(__name__)

# Who is refused may ask again and again; the log need not say so each time.
REFUSALS_PER_S = 1.0
REFUSALS_AT_ONCE = 20


class Greeting(enum.Enum):
    """What came of a heartbeat."""

    REFUSED = "refused"
    KNOWN = "known"
    FRESH = "fresh"


class Pool:
    """Keeps track of who is there, under which identity, and how often each has restarted."""

    def __init__(self, channel: Channel[Any, Any], session: str) -> None:
        self.channel = channel
        self._session = session
        self.peers: dict[str, Peer] = {}
        self._logged_refusals = Bucket(REFUSALS_PER_S, REFUSALS_AT_ONCE)

    def greet(
        self,
        sender: bytes,
        hello: Hello | NodeStatus,
        detokenizers: dict[str, str] | None = None,
        model: str = "",
    ) -> Greeting:
        """Take note of a heartbeat, answer it; FRESH if it is the first of a new incarnation."""
        if hello.version != PROTOCOL_VERSION:
            reason = f"it speaks protocol {hello.version}, this router {PROTOCOL_VERSION}"
            self.refuse(sender, hello.name, reason)
            return Greeting.REFUSED
        known = self.peers.get(hello.name)
        fresh = known is None or known.incarnation != hello.incarnation
        if fresh:
            restarts = known.restarts + 1 if known else 0
            self.peers[hello.name] = known = Peer(
                hello.name, sender, hello.incarnation, time.monotonic(), restarts
            )
            log.info("%s is here%s", hello.name, " again" if restarts else "")
        assert known is not None
        known.last_seen = time.monotonic()
        known.dropped_frames = hello.dropped_frames
        known.rss_bytes = hello.rss_bytes
        self.channel.send(Welcome(self._session, detokenizers or {}, model), to=sender)
        return Greeting.FRESH if fresh else Greeting.KNOWN

    def refuse(self, sender: bytes, name: str, reason: str) -> None:
        """Tell a process that it cannot stay; it ends then."""
        if self._logged_refusals.take():
            log.error("refused %s: %s", as_reason(name), reason)
        self.channel.send(Refused(reason), to=sender)

    def name_of(self, identity: bytes) -> str | None:
        """Who sent a message; None if it is not, or no longer, one of them."""
        return next((p.name for p in self.peers.values() if p.identity == identity), None)

    def send(self, name: str, message: Any) -> bool:
        """Send to a process by name; False if it is unknown or gone."""
        peer = self.peers.get(name)
        return peer is not None and self.channel.send(message, to=peer.identity)

    def reaches(self, name: str) -> bool:
        """Whether something can be sent to a process: not if its socket is closed."""
        return self.send(name, Welcome(self._session))

    def alive(self) -> Iterable[Peer]:
        """Those heard from lately."""
        now = time.monotonic()
        return [peer for peer in self.peers.values() if not peer.silent(now)]
