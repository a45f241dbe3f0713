"""A line for each frame: for people, or as JSON for tools."""

from __future__ import annotations

import json
import time
from typing import Any

from mlxfleet.common.tap.recorder import Direction
from mlxfleet.common.tap.selection import Sighting
from mlxfleet.common.tap.stream import Process
from mlxfleet.common.tap.visibility import Hidden, redact

ARROWS: dict[Direction, str] = {
    "sent": "->",
    "unsent": "-x",
    "received": "<-",
    "malformed": "<x",
}
MOST_RIDS = 2
# Said elsewhere in the line.
UNSAID = frozenset({"type", "rid", "rids"})


def as_json(seen: Sighting, *, show_prompts: bool) -> str:
    """A frame as one line of JSON. A hidden value is {"hidden": size}."""
    frame = seen.frame
    line = {
        "time": frame.time,
        "process": frame.process,
        "number": frame.number,
        "direction": frame.direction,
        "link": frame.link,
        "peer": frame.peer,
        "bytes": len(frame.frame),
        "type": seen.kind,
        "rids": seen.rids,
        "message": content(seen, show_prompts=show_prompts),
    }
    return json.dumps(line, default=plain, skipkeys=True)


def lost_as_json(process: str, count: int) -> str:
    """Frames that were not seen, as one line of JSON."""
    return json.dumps({"lost": count, "process": process})


def as_text(seen: Sighting, *, show_prompts: bool) -> str:
    """A frame as a line for people: <12> stands for a hidden value of that size."""
    frame = seen.frame
    message = content(seen, show_prompts=show_prompts)
    words = [
        f"{name}={brief(value)}"
        for name, value in message.items()
        if name not in UNSAID and not empty(value)
    ]
    head = (
        f"{clock(frame.time)} {frame.process:<13} {ARROWS[frame.direction]} {place(seen):<22} "
        f"{seen.kind:<15} {brief_rids(seen.rids):<26} {len(frame.frame)} B"
    )
    return printable(" ".join([head, *words]))


def describe(process: Process) -> str:
    """What a dump is, for people."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process.time))
    return printable(f"# {process.process} (process {process.pid}), {when}: {process.reason}")


def lost_as_text(process: str, count: int) -> str:
    """Frames that were not seen, for people."""
    return f"# {count} frames of {process} are lost: they came faster than they were read"


def content(seen: Sighting, *, show_prompts: bool) -> dict[Any, Any]:
    """The message, with what is private hidden unless it is wanted."""
    return seen.message if show_prompts else redact(seen.kind, seen.message)


def place(seen: Sighting) -> str:
    """The link, and the peer's name on it if it has one; what follows it tells restarts apart."""
    name, colon, _ = seen.frame.peer.partition(":")
    return f"{seen.frame.link}/{name}" if colon else seen.frame.link


def brief_rids(rids: list[str]) -> str:
    """The first sequences, and how many more there are."""
    more = f"+{len(rids) - MOST_RIDS}" if len(rids) > MOST_RIDS else ""
    return ",".join(rids[:MOST_RIDS]) + more or "-"


def empty(value: Any) -> bool:
    """Whether there is nothing in a text, list or map, hidden or not."""
    return (value.size == 0) if isinstance(value, Hidden) else value in (None, "", [], {})


def brief(value: Any) -> str:
    """A value without spaces."""
    if isinstance(value, Hidden):
        sizes = value.size if isinstance(value.size, list) else [value.size]
        return f"<{','.join(map(str, sizes))}>"
    return json.dumps(
        value, default=plain, separators=(",", ":"), ensure_ascii=False, skipkeys=True
    )


def plain(value: Any) -> Any:
    """What JSON has no form for."""
    return {"hidden": value.size} if isinstance(value, Hidden) else str(value)


def clock(seconds: float) -> str:
    """The time of day, to the microsecond."""
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1e6) % 10**6:06}"


def printable(text: str) -> str:
    """A line without characters that a terminal would obey; names of peers can be anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
