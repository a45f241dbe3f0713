"""The JSON of answers, whole and streamed, for both endpoints."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mlxfleet.common.messages import TokenText, TokenTextLogprobs
from mlxfleet.router.generation import Choice
from mlxfleet.router.sequences import Delta
from mlxfleet.router.shapes import (
    ChatShape,
    CompletionEntry,
    CompletionShape,
    Response,
    TextChoice,
    Usage,
    completion_top,
)


def shown(part: object) -> Any:
    """What a client reads."""
    return json.loads(msgspec.json.encode(part))


def token(text: str, logprob: float = -0.5, raw: bytes | None = None) -> TokenText:
    """A token as the detokenizer describes it."""
    return TokenText(text, list(raw if raw is not None else text.encode()), logprob)


def entry(text: str, *top: TokenText, raw: bytes | None = None) -> TokenTextLogprobs:
    """A position at which a token was chosen."""
    return TokenTextLogprobs(token(text, raw=raw), list(top))


def entries(*texts: str) -> list[TokenTextLogprobs]:
    """Positions without alternatives."""
    return [entry(text) for text in texts]


# --- chat -----------------------------------------------------------------------------------------


def test_a_whole_chat_choice() -> None:
    choice: Choice[msgspec.Raw] = Choice(text="Hé", finish_reason="stop")
    assert shown(ChatShape().whole(1, choice)) == {
        "index": 1,
        "message": {"role": "assistant", "content": "Hé", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_a_chat_choice_without_text_has_an_empty_string() -> None:
    message = shown(ChatShape().whole(0, Choice(finish_reason="stop")))["message"]
    assert message["content"] == ""


def test_a_chat_stream_opens_with_the_role() -> None:
    assert shown(ChatShape().opening(2)) == {
        "index": 2,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }


def test_a_chat_chunk_has_only_what_is_new() -> None:
    assert shown(ChatShape().chunk(0, Delta(text="x"))) == {
        "index": 0,
        "delta": {"content": "x"},
        "logprobs": None,
        "finish_reason": None,
    }


def test_the_last_chat_chunk_may_have_an_empty_delta() -> None:
    chunk = shown(ChatShape().chunk(0, Delta(finish_reason="length")))
    assert (chunk["delta"], chunk["finish_reason"]) == ({}, "length")


def test_chat_log_probabilities_have_tokens_bytes_and_alternatives() -> None:
    half = entry("\ufffd", token("a", -1.0), token("b", -2.0), raw=b"\xc3")
    shape = ChatShape()
    streamed = shown(shape.chunk(0, Delta("x", [half])))["logprobs"]
    assert streamed == shown(shape.whole(0, Choice("x", [shape.entry(half)])))["logprobs"]
    assert streamed == {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -0.5,
                "bytes": [0xC3],
                "top_logprobs": [
                    {"token": "a", "logprob": -1.0, "bytes": [97]},
                    {"token": "b", "logprob": -2.0, "bytes": [98]},
                ],
            }
        ],
        "refusal": None,
    }


def test_chat_log_probabilities_without_alternatives_have_an_empty_list() -> None:
    chunk = shown(ChatShape().chunk(0, Delta(text="a", logprobs=entries("a"))))
    assert chunk["logprobs"]["content"][0]["top_logprobs"] == []


# --- completions ----------------------------------------------------------------------------------


def whole_completion(top: int, text: str, logprobs: list[TokenTextLogprobs]) -> TextChoice:
    """A finished choice of a request for so many alternatives."""
    shape = CompletionShape(top)
    return shape.whole(0, Choice(text, [*map(shape.entry, logprobs)], "stop"))


def test_a_whole_completion_choice() -> None:
    choice: Choice[CompletionEntry] = Choice(text="Hé", finish_reason="length")
    assert shown(CompletionShape(None).whole(3, choice)) == {
        "index": 3,
        "text": "Hé",
        "logprobs": None,
        "finish_reason": "length",
    }


def test_a_completion_stream_has_no_opening() -> None:
    assert CompletionShape(None).opening(0) is None


def test_a_completion_chunk_has_only_what_is_new() -> None:
    assert shown(CompletionShape(None).chunk(0, Delta(text="x"))) == {
        "index": 0,
        "text": "x",
        "logprobs": None,
        "finish_reason": None,
    }


def test_completion_log_probabilities_are_columns() -> None:
    logprobs = [
        entry("He", token("He", -0.5), token("She", -1.5)),
        entry("llo", token("y", -0.1)),
    ]
    assert shown(whole_completion(2, "Hello", logprobs))["logprobs"] == {
        "tokens": ["He", "llo"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"He": -0.5, "She": -1.5}, {"y": -0.1, "llo": -0.5}],
        "text_offset": [0, 2],
    }


def test_no_alternatives_were_asked_for() -> None:
    assert shown(whole_completion(0, "a", entries("a")))["logprobs"]["top_logprobs"] is None


def test_the_chosen_token_is_among_the_alternatives() -> None:
    assert completion_top(entry("c", token("a", -0.1), token("b", -0.2))) == {
        "a": -0.1,
        "b": -0.2,
        "c": -0.5,
    }


def test_a_chosen_token_that_is_an_alternative_is_there_once() -> None:
    assert completion_top(entry("a", token("a", -0.5), token("b", -0.7))) == {"a": -0.5, "b": -0.7}


def offsets(chunk: object) -> list[int]:
    """The text offsets of a chunk."""
    found: list[int] = shown(chunk)["logprobs"]["text_offset"]
    return found


def test_text_offsets_go_on_across_chunks() -> None:
    shape = CompletionShape(0)
    assert offsets(shape.chunk(0, Delta("Hello", entries("He", "llo")))) == [0, 2]
    shape.chunk(0, Delta(text=""))
    assert offsets(shape.chunk(0, Delta(" you", entries(" you")))) == [5]


def test_each_choice_has_its_own_text_offsets() -> None:
    shape = CompletionShape(0)
    shape.chunk(0, Delta("Hello", entries("Hello")))
    assert offsets(shape.chunk(1, Delta("abc", entries("a", "bc")))) == [0, 1]
    assert offsets(shape.chunk(0, Delta("!", entries("!")))) == [5]


def test_a_streamed_choice_has_the_offsets_of_a_whole_one() -> None:
    tokens = ["The", " c", "a", "t", " sat", "."]
    whole = whole_completion(0, "".join(tokens), entries(*tokens))
    streamed = CompletionShape(0)
    pieces = [Delta(text, entries(text)) for text in tokens]
    joined = [offset for piece in pieces for offset in offsets(streamed.chunk(0, piece))]
    assert joined == offsets(whole)


def test_text_offsets_count_a_character_of_several_tokens_once() -> None:
    halves = [entry("\ufffd", raw=b"\xc3"), entry("\ufffd", raw=b"\xa9")]
    whole = whole_completion(0, "é!", [*halves, entry("!")])
    assert offsets(whole)[2] == len("é")


# --- around the choices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "whole", "chunk", "prefix"),
    [
        (ChatShape(), "chat.completion", "chat.completion.chunk", "chatcmpl-"),
        (CompletionShape(None), "text_completion", "text_completion", "cmpl-"),
    ],
)
def test_objects_are_named_as_openai_names_them(
    shape: ChatShape | CompletionShape, whole: str, chunk: str, prefix: str
) -> None:
    assert (shape.whole_object, shape.chunk_object, shape.id_prefix) == (whole, chunk, prefix)


def test_a_response_has_its_time_and_no_usage_unless_given() -> None:
    response = shown(Response(id="x", object="text_completion", model="m", choices=[]))
    assert abs(response.pop("created") - time.time()) < 60
    assert response == {"id": "x", "object": "text_completion", "model": "m", "choices": []}


def test_chunks_before_the_last_say_that_usage_will_come() -> None:
    response = Response(id="x", object="o", model="m", choices=[], usage=None)
    assert shown(response)["usage"] is None


def test_usage_adds_up() -> None:
    generation: Any = SimpleNamespace(prompt_tokens=10, completion_tokens=5, cached_tokens=8)
    assert shown(Usage.of(generation)) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
