"""What a stream has to look like, event by event."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlxfleet.bench.chaos.answers import EventError, MalformedError, StreamReader, read_whole
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.conversations import Endpoint

USAGE = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
DONE = b"[DONE]"


def case(endpoint: Endpoint = "completions", **fields: Any) -> Case:
    """A streamed request that wants token counts."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}
    return Case(name="request 0", endpoint=endpoint, body={"prompt": "x", **options}, key=0)


def chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    """An event's data."""
    return msgspec.json.encode({"id": "cmpl-1", "choices": choices, **fields})


def text(content: str, end: str | None = None) -> dict[str, Any]:
    """A completion's choice."""
    return {"index": 0, "text": content, "finish_reason": end, "logprobs": None}


def delta(end: str | None = None, **fields: str) -> dict[str, Any]:
    """A chat's choice."""
    return {"index": 0, "delta": fields, "finish_reason": end, "logprobs": None}


def read(events: list[bytes], endpoint: Endpoint = "completions") -> StreamReader:
    """A stream of these events."""
    reader = StreamReader(case(endpoint))
    for event in events:
        reader.take(event)
    return reader


def test_a_stream_is_put_together() -> None:
    end = [chunk(text("b", "length")), chunk(usage=USAGE), DONE]
    reader = read([chunk(text("a")), *end])
    assert reader.done
    assert reader.answer.choices[0].text == "ab"
    assert reader.answer.usage is not None
    assert reader.answer.usage.completion_tokens == 2


@pytest.mark.parametrize(
    "events",
    [
        [chunk(text("a", "length")), chunk(text("b"))],
        [chunk(text("a", "length")), chunk(text("", "length"))],
        [chunk(text("a", "length")), DONE],
        [chunk(text("a")), chunk(usage=USAGE), DONE],
        [chunk(text("a", "length")), chunk(usage=USAGE), DONE, DONE],
        [chunk(text("a", "length")), chunk(usage=USAGE), chunk(usage=USAGE)],
        [chunk(text("a")), chunk(text("b", "length"), id="cmpl-2")],
        [chunk(text("a", "unheard of")), chunk(usage=USAGE), DONE],
        [chunk({**text("a"), "index": 1})],
        [b"{"],
    ],
    ids=[
        "goes on after its end",
        "ends twice",
        "no token counts",
        "no end",
        "done twice",
        "token counts twice",
        "another stream's chunk",
        "no such end",
        "no such choice",
        "no JSON",
    ],
)
def test_what_is_wrong_with_a_stream_is_found(events: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        read(events)


def test_a_chat_opens_each_choice_once() -> None:
    opening = chunk(delta(role="assistant", content=""))
    read([opening, chunk(delta(content="a"))], "chat")
    for events in ([chunk(delta(content="a"))], [opening, opening]):
        with pytest.raises(MalformedError, match="opens late or twice"):
            read(events, "chat")


def test_an_error_event_is_an_error() -> None:
    with pytest.raises(EventError, match="lost"):
        read([chunk(text("a")), msgspec.json.encode({"error": {"message": "lost"}})])


def test_a_whole_answer_has_every_choice_in_order() -> None:
    whole = {"choices": [text("a", "length")], "usage": USAGE}
    assert read_whole(case(), msgspec.json.encode(whole)).choices[0].text == "a"
    whole["choices"] = [text("a", "length"), text("b", "length")]
    with pytest.raises(MalformedError):
        read_whole(case(), msgspec.json.encode(whole))
