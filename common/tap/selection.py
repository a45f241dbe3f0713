"""What of the recorded frames is to be seen: by process, link, type of message and request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgpack

from mlxfleet.common.tap.stream import Frame

MALFORMED = "malformed"
HEARTBEATS = frozenset(
    {
        "hello",
        "welcome",
        "node_status",
        "worker_status",
        "worker_loading",
        "machine_sample",
        "ping",
    }
)

# Ids in the API are a request's id behind one of these.
API_PREFIXES = ("chatcmpl-", "cmpl-")


@dataclass(frozen=True)
class Columns:
    """The columnar fields of a message: one entry per rid, or for some of them by position."""

    dense: tuple[str, ...]
    sparse: tuple[str, ...] = ()


COLUMNS = {
    "tokens": Columns(("rids", "attempts", "starts", "ids"), ("finish", "logprobs")),
    "text": Columns(
        ("rids", "attempts", "starts", "ids", "offsets", "texts"), ("finish", "logprobs")
    ),
    "prefill": Columns(("rids", "tokens")),
    "step": Columns(("rids", "ids"), ("finish", "failed", "logprobs")),
}
# Pairs of a rid and something else.
PAIRS = {"step": "prefilled"}


@dataclass(frozen=True)
class Sighting:
    """A frame and what is in it; `message` is empty if it is malformed."""

    frame: Frame
    kind: str
    message: dict[Any, Any]

    @property
    def rids(self) -> list[str]:
        """The sequences that the message is about."""
        found = [self.message["rid"]] if "rid" in self.message else []
        found += as_list(self.message.get("rids"))
        found += [pair[0] for pair in pairs_of(self.kind, self.message)]
        return list(dict.fromkeys(str(rid) for rid in found))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is to be seen; empty collections stand for everything. `processes` and `links` may have
    wildcards, `rid` is how a sequence's name begins. Heartbeats are only seen if asked for."""

    processes: Collection[str] = ()
    links: Collection[str] = ()
    kinds: Collection[str] = ()
    rid: str = ""
    heartbeats: bool = False

    def has_process(self, name: str) -> bool:
        """Whether a process's frames are to be seen."""
        return matches(name, self.processes)

    def see(self, frame: Frame) -> Sighting | None:
        """What is to be seen of a frame: of a columnar message only the entries of `rid`."""
        if not self.has_process(frame.process) or not matches(frame.link, self.links):
            return None
        seen = look(frame)
        if not self._has_kind(seen.kind):
            return None
        return only(seen, self.rid) if self.rid else seen

    def _has_kind(self, kind: str) -> bool:
        if self.kinds:
            return kind in self.kinds
        return self.heartbeats or kind not in HEARTBEATS


def rid_of(name: str) -> str:
    """The request that a name stands for, which may be an answer's id in the API."""
    for prefix in API_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name fits one of the patterns, or there are none."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def look(frame: Frame) -> Sighting:
    """Decode a frame, whatever it is."""
    try:
        message = msgpack.unpackb(frame.frame, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        message = None
    if frame.direction == MALFORMED or not isinstance(message, dict):
        return Sighting(frame, MALFORMED, {})
    return Sighting(frame, str(message.get("type", "")), message)


def only(seen: Sighting, prefix: str) -> Sighting | None:
    """The part of a message that is about sequences whose names begin like this, if there is."""
    if not any(rid.startswith(prefix) for rid in seen.rids):
        return None
    message = dict(seen.message)
    if columns := COLUMNS.get(seen.kind):
        rids = as_list(message.get("rids"))
        kept = [i for i, rid in enumerate(rids) if str(rid).startswith(prefix)]
        for name in columns.dense:
            column = as_list(message.get(name))
            message[name] = [column[i] for i in kept if i < len(column)]
        for name in columns.sparse:
            if isinstance(sparse := message.get(name), dict):
                message[name] = {new: sparse[i] for new, i in enumerate(kept) if i in sparse}
    if pairs := PAIRS.get(seen.kind):
        both = pairs_of(seen.kind, message)
        message[pairs] = [pair for pair in both if str(pair[0]).startswith(prefix)]
    return Sighting(seen.frame, seen.kind, message)


def pairs_of(kind: str, message: dict[Any, Any]) -> list[list[Any]]:
    """The pairs of a rid and something else that a message has."""
    pairs = as_list(message.get(PAIRS.get(kind)))
    return [pair for pair in pairs if isinstance(pair, list) and pair]


def as_list(value: Any) -> list[Any]:
    """A value that should be a list, of a message that may be anything."""
    return value if isinstance(value, list) else []
