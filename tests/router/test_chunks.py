"""Events of a streamed answer that are put together from parts are as if encoded whole."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.messages import TokenText, TokenTextLogprobs
from mlxfleet.router.chunks import Chunks
from mlxfleet.router.generation import Generation
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, StreamOptions
from mlxfleet.router.sequences import Delta
from mlxfleet.router.shapes import ChatShape, CompletionShape

RID = "0123456789abcdef01234567"
quick = settings(derandomize=True, deadline=None, database=None, max_examples=100)


def chunks(api: str = "chat", model: str = "m", **stream_options: bool) -> Chunks:
    """Those of a request with two choices, three prompt tokens and two tokens of the answer."""
    generation = SimpleNamespace(
        rid=RID,
        model=model,
        sequences=[None, None],
        prompt_tokens=3,
        completion_tokens=2,
        cached_tokens=0,
    )
    options = StreamOptions(**stream_options) if stream_options else None
    if api == "chat":
        chat = ChatRequest(messages=[], stream_options=options)
        return Chunks(cast(Generation, generation), ChatShape(), chat)
    completion = CompletionRequest(prompt="", stream_options=options)
    return Chunks(cast(Generation, generation), CompletionShape(1), completion)


def read(event: bytes) -> Any:
    """What a client reads."""
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event.removeprefix(b"data: "))


def text_of(choice: Any) -> str:
    return str(choice["delta"]["content"] if "delta" in choice else choice["text"])


@pytest.mark.parametrize("api", ["chat", "completion"])
@quick
@given(texts=st.lists(st.tuples(st.integers(0, 1), st.text(min_size=1)), max_size=5))
def test_any_text_of_any_choice_comes_through(api: str, texts: list[tuple[int, str]]) -> None:
    events = chunks(api)
    for index, text in texts:
        (choice,) = read(events.chunk(index, Delta(text)))["choices"]
        assert (choice["index"], text_of(choice)) == (index, text)


@pytest.mark.parametrize("api", ["chat", "completion"])
@pytest.mark.parametrize("text", ["x", '"', "\n\n", "é\u2028", f"{RID} text", "data: [DONE]"])
def test_a_chunk_from_parts_is_as_one_that_is_encoded_whole(api: str, text: str) -> None:
    events = chunks(api)
    whole = read(events.chunk(0, Delta(text, finish_reason="stop")))
    whole["choices"][0]["finish_reason"] = None
    assert read(events.chunk(0, Delta(text))) == whole


def test_a_model_may_have_any_name() -> None:
    (choice,) = (chunk := read(chunks(model='" text": {}').chunk(1, Delta("x"))))["choices"]
    assert (chunk["model"], choice["index"], text_of(choice)) == ('" text": {}', 1, "x")


def test_log_probabilities_and_the_end_come_beside_chunks_of_text() -> None:
    events = chunks("completion")
    entry = TokenTextLogprobs(TokenText("b", [98], -0.5), [])
    shown = [
        read(events.chunk(0, delta))["choices"][0]
        for delta in (Delta("a"), Delta("b", [entry]), Delta("c"), Delta("", [], "length"))
    ]
    assert [choice["text"] for choice in shown] == ["a", "b", "c", ""]
    assert [choice["logprobs"] is None for choice in shown] == [True, False, True, True]
    assert [choice["finish_reason"] for choice in shown] == [None, None, None, "length"]


def test_usage_is_in_each_chunk_if_that_is_wanted() -> None:
    events = chunks(include_usage=True, continuous_usage_stats=True)
    assert read(events.chunk(0, Delta("a")))["usage"]["total_tokens"] == 5


def test_usage_at_the_end_has_no_choices_and_is_null_before() -> None:
    events = chunks(include_usage=True)
    assert read(events.chunk(0, Delta("a")))["usage"] is None
    last = read(events.usage())
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 2)


def test_without_stream_options_no_chunk_has_usage() -> None:
    assert "usage" not in read(chunks().chunk(0, Delta("a")))
