"""Logits that are not finite end their own row, and nobody else's."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxfleet.common.messages import Sampling
from mlxfleet.workers.engine import Engine
from tests.workers.engine_driver import Driver, Request, Result, engine_for, generate_alone
from tests.workers.tiny_models import build

BAD_TOKEN = 119
GOOD = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
BAD = [7, BAD_TOKEN, 11, 12]
# All the ways in which a token is chosen: argmax, a draw, with penalties, with log-probabilities.
SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    {"temperature": 0.0, "presence_penalty": 0.5, "logprobs": 2},
]


def broken_model(number: float) -> Any:
    """A llama for which one token is no number."""
    model = build("llama")
    weights = np.array(model.model.embed_tokens.weight)
    weights[BAD_TOKEN] = number
    model.model.embed_tokens.weight = mx.array(weights)
    # It cannot be chosen, so that good rows stay good.
    head = np.array(model.lm_head.weight)
    head[BAD_TOKEN] = 0.0
    model.lm_head.weight = mx.array(head)
    return model


def request(rid: str, prompt: list[int], **sampling: Any) -> Request:
    bias = {BAD_TOKEN: -100.0}
    options = {"temperature": 0.0, "max_tokens": 6, "logit_bias": bias, **sampling}
    return Request(rid=rid, prompt=prompt, sampling=Sampling(seed=1, **options))


def run(engine: Engine, *requests: Request) -> dict[str, Result]:
    return Driver(engine, requests, chunks=[4]).run()


@pytest.mark.parametrize("slabs", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_row_without_numbers_fails_and_has_no_token(
    slabs: bool, sampling: dict[str, Any], number: float
) -> None:
    engine = engine_for(broken_model(number), slabs=slabs)
    found = run(engine, request("bad", BAD, **sampling), request("good", GOOD[0], **sampling))
    assert (found["bad"].failed, found["bad"].ids, found["bad"].logprobs) == (True, [], [])
    assert (found["good"].failed, len(found["good"].ids)) == (False, 6)


@pytest.mark.parametrize("slabs", [True, False])
def test_rows_beside_and_after_one_that_fails_are_computed_as_if_alone(slabs: bool) -> None:
    model = broken_model(math.nan)
    engine = engine_for(model, slabs=slabs)
    expected = [generate_alone(model, prompt, 6).ids for prompt in GOOD]
    beside = run(engine, request("0", GOOD[0]), request("bad", BAD), request("1", GOOD[1]))
    assert beside["bad"].failed
    # The last comes into the memory that the failed row has left, and is shorter.
    after = run(engine, request("2", GOOD[2]), request("1", GOOD[1]), request("0", GOOD[0]))
    assert [beside[name].ids for name in "01"] == expected[:2]
    assert [after[name].ids for name in "012"] == expected


def test_a_row_may_fail_after_tokens_that_were_good() -> None:
    model = broken_model(math.nan)
    engine = engine_for(model)
    bias = {BAD_TOKEN: 100.0}
    found = run(engine, request("late", GOOD[0], logit_bias=bias))["late"]
    assert (found.ids, found.failed, found.finish) == ([BAD_TOKEN], True, None)


@pytest.mark.parametrize("slabs", [True, False])
def test_logits_of_minus_infinity_are_those_of_tokens_that_cannot_be_chosen(slabs: bool) -> None:
    engine = engine_for(build("llama"), slabs=slabs)
    found = run(engine, request("a", GOOD[0], logit_bias={4: -math.inf}))["a"]
    assert (found.failed, len(found.ids)) == (False, 6)
