"""What the fields of messages may hold. A value outside makes a frame malformed, so that no NaN, no
infinity and nothing of absurd size gets past the receiving socket.

Limits are far above what an honest process sends; `clipped` keeps measured values inside them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Whole numbers that a float, and so JSON and Prometheus, shows exactly.
MOST = 2**53
MOST_SECONDS = 1e9
MOST_PER_S = 1e9
LEAST_SLOWDOWN, MOST_SLOWDOWN = 0.01, 1e4
MAX_TOKEN_ID = 2**31 - 1
MAX_VOCABULARY = 2**24
MAX_CONTEXT = 2**31
MAX_ROWS = 65_536
MAX_QUEUED = 2**24
# Reasons and messages that one process gives another.
MAX_REASON = 500
# Entries of one message of Tokens, and tokens of one entry: a longer rest is sent in parts.
MAX_ENTRIES = 65_536
MAX_ENTRY_TOKENS = 1024
MAX_ALTERNATIVES = 64
HASHES_PER_MESSAGE = 1024

# msgspec refuses NaN where there is any limit.
Count = Annotated[int, Meta(ge=0, le=MOST)]
Seconds = Annotated[float, Meta(ge=0, le=MOST_SECONDS)]
PerSecond = Annotated[float, Meta(ge=0, le=MOST_PER_S)]
Slowdown = Annotated[float, Meta(ge=LEAST_SLOWDOWN, le=MOST_SLOWDOWN)]
Reading = Annotated[float, Meta(ge=-1e15, le=1e15)]
Level = Annotated[int, Meta(ge=0, le=100)]
Rows = Annotated[int, Meta(ge=0, le=MAX_ROWS)]
Queued = Annotated[int, Meta(ge=0, le=MAX_QUEUED)]
Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
Context = Annotated[int, Meta(ge=0, le=MAX_CONTEXT)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
# 64 bits, which is all that MessagePack has; msgspec takes no limit that large.
BlockHash = Annotated[int, Meta(ge=0)]
Hashes = Annotated[list[BlockHash], Meta(max_length=HASHES_PER_MESSAGE)]
Word = Annotated[str, Meta(max_length=256)]
ModelName = Annotated[str, Meta(max_length=4096)]
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
Rid = Annotated[str, Meta(min_length=1, max_length=64)]
Attempt = Annotated[str, Meta(min_length=1, max_length=32)]


def clipped(value: float, least: float = 0.0, most: float = MOST_SECONDS) -> float:
    """A measured value between limits; the least for one that is not a number."""
    return min(max(value, least), most) if value == value else least


def reason(text: str) -> str:
    """A text for another process or a log: one short line without control characters."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_REASON])
    return " ".join(printable.split())[:MAX_REASON]
