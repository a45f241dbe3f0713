"""Keeps the index in step with what nodes say of their caches; notices what was missed."""

from __future__ import annotations

from dataclasses import dataclass

from mlxfleet.common.messages import KvEvents, KvSnapshot, NodeStatus
from mlxfleet.router.cache_index import CacheIndex

ASK_AGAIN_S = 2.0


@dataclass
class Feed:
    """One node's messages: `last` is the number of the last that was taken in, None if what is
    known of the node is not whole; a snapshot was asked for at `asked_s`, if ever."""

    last: int | None = None
    asked_s: float | None = None


class CacheFeed:
    """What comes of messages about caches. The `on_` methods say whether to ask for a snapshot;
    `now` is time.monotonic()."""

    def __init__(self, index: CacheIndex) -> None:
        self._index = index
        self._feeds: dict[str, Feed] = {}
        self.gaps: dict[str, int] = {}
        self.snapshots: dict[str, int] = {}

    def forget(self, node: str) -> None:
        """A node is lost, or has restarted."""
        self._feeds.pop(node, None)
        self._index.remove(node)

    def keep(self, alive: set[str]) -> None:
        """Forget every node that is not among these."""
        for node in {*self._feeds, *self._index.nodes} - alive:
            self.forget(node)

    def on_status(self, status: NodeStatus, now: float) -> bool:
        """A report says which message was the last, in case that one was missed."""
        feed = self._feeds.get(status.name)
        if feed is None:
            feed = self._feeds[status.name] = Feed(None if status.kv_sequence else 0)
        elif feed.last is not None and feed.last != status.kv_sequence:
            self._missed(status.name, feed)
        return self._ask(feed, now)

    def on_events(self, node: str, events: KvEvents, now: float) -> bool:
        """Blocks came and went."""
        feed = self._feeds.get(node)
        if feed is None or feed.last is None:
            return False
        if events.sequence != feed.last + 1:
            self._missed(node, feed)
            return self._ask(feed, now)
        feed.last = events.sequence
        if events.cleared:
            self._index.empty(node)
        self._index.drop(node, events.removed)
        self._index.store(node, events.stored)
        return False

    def on_snapshot(self, node: str, part: KvSnapshot, now: float) -> bool:
        """A part of everything; it counts from the first part on."""
        feed = self._feeds.get(node)
        if feed is None:
            return False
        if part.first:
            self._index.empty(node)
            self.snapshots[node] = self.snapshots.get(node, 0) + 1
        elif feed.last is None:
            return False
        elif part.sequence != feed.last + 1:
            self._missed(node, feed)
            return self._ask(feed, now)
        feed.last = part.sequence
        feed.asked_s = None
        self._index.store(node, part.stored)
        return False

    def _missed(self, node: str, feed: Feed) -> None:
        feed.last = None
        self.gaps[node] = self.gaps.get(node, 0) + 1

    def _ask(self, feed: Feed, now: float) -> bool:
        recently = feed.asked_s is not None and now - feed.asked_s < ASK_AGAIN_S
        if feed.last is not None or recently:
            return False
        feed.asked_s = now
        return True
