"""Large bodies mean what they mean when they are small, and lists are counted before they are
decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.large_bodies import (
    MAX_PARAMETER_BYTES,
    MAX_PROMPTS,
    count_prompts,
    read_messages,
    read_prompt,
    take_apart,
)
from mlxfleet.common.request_content import split_prompt

CONTEXT, VOCAB = 100, 1000


def test_parameters_keep_their_values_and_content_its_json() -> None:
    body = b'{"prompt": [1, 2 ], "seed": 7, "odd": {"a": 1}, "seed": 8}'
    parameters, content = take_apart(body, "prompt")
    assert json.loads(parameters) == {"prompt": [""], "seed": 8, "odd": {"a": 1}}
    assert content == b"[1, 2 ]"


def test_placeholders_are_as_many_as_the_prompts() -> None:
    parameters, _ = take_apart(b'{"prompt": ["a", "b\\"", "[c"]}', "prompt")
    assert json.loads(parameters)["prompt"] == [""] * 3


@pytest.mark.parametrize("body", [b"[1]", b'"a"', b"{", b'{"prompt": [1}', b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        take_apart(body, "prompt")


@pytest.mark.parametrize("name", ["user", "messages", "prompt"])
def test_parameters_are_bounded(name: str) -> None:
    """Also what is given twice."""
    large = json.dumps("a" * MAX_PARAMETER_BYTES)
    body = f'{{"{name}": {large}, "prompt": {large}}}'.encode()
    with pytest.raises(InvalidRequestError) as caught:
        take_apart(body, "prompt")
    assert caught.value.code == "parameters_too_large"


PROMPTS = st.one_of(
    st.text(max_size=8),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=5),
)
INDENTS = st.sampled_from([None, 0, 2])


@given(prompt=PROMPTS, indent=INDENTS, ascii_only=st.booleans())
def test_a_prompt_is_read_as_it_is_in_a_small_body(
    prompt: Any, indent: int | None, ascii_only: bool
) -> None:
    content = json.dumps(prompt, indent=indent, ensure_ascii=ascii_only).encode()
    expected = split_prompt(prompt, VOCAB)
    assert read_prompt(content, CONTEXT, VOCAB) == expected
    assert count_prompts(content) == len(expected)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=8,
)


@given(prompt=ANYTHING)
def test_any_prompt_is_read_or_refused_as_it_is_in_a_small_body(prompt: Any) -> None:
    content = json.dumps(prompt).encode()
    try:
        expected = split_prompt(prompt, VOCAB) if isinstance(prompt, str | list) else None
    except InvalidRequestError:
        expected = None
    try:
        read = read_prompt(content, CONTEXT, VOCAB)
    except InvalidRequestError:
        read = None
    assert read == expected


def test_too_many_prompts_are_refused_by_count() -> None:
    for piece in ('"a"', "[1]"):
        content = f"[{','.join([piece] * (MAX_PROMPTS + 1))}]".encode()
        with pytest.raises(InvalidRequestError, match="more than"):
            count_prompts(content)


def test_token_ids_are_counted_before_they_are_looked_at() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_prompt(b"[" + b"true," * CONTEXT + b"1]", CONTEXT, VOCAB)
    assert caught.value.code == "context_length_exceeded"


def test_messages_are_read_for_the_template() -> None:
    content = b'[{"role": "developer", "content": [{"type": "text", "text": "a"}]}]'
    assert read_messages(content, CONTEXT) == [{"role": "system", "content": "a"}]


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"[]", "messages"),
        (b'"text"', ""),
        (b'[{"role": "user", "content": 1}]', "messages[0].content"),
        (b'[{"role": "user", "content": "", "x": 1}]', "messages[0].x"),
        (b"[" + b"{}," * CONTEXT + b"{}]", "messages"),
    ],
)
def test_a_wrong_message_is_named(content: bytes, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_messages(content, CONTEXT)
    assert caught.value.param == param
