"""What is wrong with how the server answered a shot."""

from __future__ import annotations

import urllib.parse

import msgspec

from mlxfleet.bench.hostile.send import Outcome, Response
from mlxfleet.bench.hostile.shots import Shot
from mlxfleet.bench.sse import EventReader

OPEN_PATHS = ("/health", "/ready", "/metrics", "/metrics/targets", "/ui")
ADMIN_PATHS = ("/admin", "/fleet")
ERROR_FIELDS = {"message", "type", "param", "code"}
# What a server may say to a request that is not right, or is too much.
REFUSALS = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 422, 426, 429, 431}
LATER = {429, 503}
TIME_LIMIT = b"x-request-timeout"
DONE = b"[DONE]"


def judge(shot: Shot, outcome: Outcome) -> str:
    """The first thing that is wrong, "" if nothing is."""
    if outcome.end == "left":
        return ""
    for response in outcome.responses:
        if wrong := judge_response(shot, response):
            return f"{response.status}: {wrong}"
    if not shot.complete or not shot.parses:
        return ""
    if outcome.end == "time over":
        return f"no end of the answer after {outcome.took_s:.0f} s"
    if len(outcome.responses) != shot.answers:
        return f"{len(outcome.responses)} answers instead of {shot.answers}, {outcome.end}"
    return ""


def judge_response(shot: Shot, response: Response) -> str:
    """What is wrong with one response."""
    status = response.status
    if status < 400:
        return judge_success(shot, response)
    if status == 504 and TIME_LIMIT in shot.sent.lower():
        return wrong_shape(response)
    if status in LATER and response.retry_after is None:
        return "no Retry-After"
    if status >= 500 and status != 503:
        return f"a failure of the server: {response.body[:300]!r}"
    if status not in REFUSALS | LATER:
        return "a status without a meaning here"
    if shot.no_body or not shot.parses:
        return ""
    return wrong_shape(response)


def judge_success(shot: Shot, response: Response) -> str:
    """Whether it should have been refused, and whether it is what it says it is."""
    if shot.refused:
        return f"answered although it is wrong: {response.body[:300]!r}"
    if response.status < 300 and not may(shot):
        return f"a way in without the key: {response.body[:300]!r}"
    if shot.no_body or not shot.parses:
        return ""
    if not response.whole:
        return "the answer ends before its end"
    if response.content_type.startswith("application/json"):
        return "" if is_json(response.body) else f"not JSON: {response.body[:300]!r}"
    if response.content_type.startswith("text/event-stream"):
        return wrong_stream(response.body)
    return ""


def may(shot: Shot) -> bool:
    """Whether the key of a shot opens its path, however that is spelled."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(shot.path).path)
    if path in OPEN_PATHS or shot.sent.startswith(b"OPTIONS "):
        return True
    if any(part in path.lower() for part in ADMIN_PATHS):
        return shot.access == "admin"
    return shot.access == "api"


def wrong_shape(response: Response) -> str:
    """Whether an error is not as OpenAI's clients expect it."""
    if not response.content_type.startswith("application/json"):
        return f"an error of type {response.content_type!r}: {response.body[:200]!r}"
    try:
        error = msgspec.json.decode(response.body)["error"]
        if set(error) >= ERROR_FIELDS and isinstance(error["message"], str) and error["message"]:
            return ""
    except (msgspec.DecodeError, KeyError, TypeError):
        pass
    return f"not an error in OpenAI's shape: {response.body[:300]!r}"


def is_json(body: bytes) -> bool:
    """Whether it can be read."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def wrong_stream(body: bytes) -> str:
    """What is wrong with a stream of events."""
    events = list(EventReader().feed(body))
    if not events:
        return "a stream without events"
    for wrong in map(wrong_event, events[:-1]):
        if wrong:
            return wrong
    if events[-1] == DONE:
        return ""
    # A stream that fails ends with its error.
    return "" if b'"error"' in events[-1] else f"a stream that ends with {events[-1][:200]!r}"


def wrong_event(data: bytes) -> str:
    """What is wrong with an event in the middle."""
    return "" if is_json(data) else f"an event that is not JSON: {data[:200]!r}"
