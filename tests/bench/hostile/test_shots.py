"""Hostile requests are functions of seed and index, and leave no parameter out."""

from __future__ import annotations

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.bench.hostile.bodies import CHAT_BODY, COMMON, COMPLETION_BODY, chat_body, with_text
from mlxfleet.bench.hostile.campaign import make_shot
from mlxfleet.bench.hostile.values import INVALID, VALID
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, parse

INDEXES = st.integers(0, 10**6)


@settings(deadline=None, max_examples=50)
@given(INDEXES, INDEXES)
def test_a_request_can_be_made_again_alone(seed: int, index: int) -> None:
    assert make_shot(seed, index) == make_shot(seed, index)


def test_every_parameter_of_the_api_is_mutated() -> None:
    of_chat = set(ChatRequest.__struct_fields__) - {"model"}
    assert of_chat == set(COMMON) | set(CHAT_BODY)
    of_completions = set(CompletionRequest.__struct_fields__) - {"model"}
    assert of_completions == set(COMMON) | set(COMPLETION_BODY)


@settings(deadline=None, max_examples=50)
@given(INDEXES)
def test_what_is_mutated_is_right_before(seed: int) -> None:
    body = chat_body(random.Random(seed))
    assert parse(ChatRequest, json.dumps(body).encode()).messages


def test_values_that_are_no_json_are_none() -> None:
    for text in INVALID:
        body = with_text({"prompt": "@@here@@"}, text)
        try:
            json.loads(body.decode(), parse_constant=refuse)
        except ValueError:
            continue
        raise AssertionError(f"{text!r} is JSON")
    for text in VALID:
        json.loads(with_text({"prompt": "@@here@@"}, text))


def refuse(text: str) -> None:
    """Python reads NaN and Infinity, which are not in JSON."""
    raise ValueError(text)


def test_the_mix_has_every_family() -> None:
    kinds = {make_shot(1, index).kind for index in range(1_000)}
    families = {kind.partition(":")[0] for kind in kinds}
    assert families == {"body", "headers", "frames", "path"}
    assert len(kinds) > 40
