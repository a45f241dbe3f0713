"""What a node may send of a stream."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlxfleet.common.limits import MAX_TOKEN_ID
from mlxfleet.common.messages import Finish, TokenLogprobs
from mlxfleet.detokenizer_proc.entry_check import BrokenError, check_entry, highest_id

MAX_TOKENS = 10
VOCAB_SIZE = 100
LENGTH = Finish("length")


def check(**fields: Any) -> None:
    given: dict[str, Any] = {"start": 3, "ids": [1], "finish": None, "logprobs": []}
    given |= fields
    check_entry(*given.values(), MAX_TOKENS, highest_id(VOCAB_SIZE))


def logprob(value: float, top: list[float] | None = None) -> list[TokenLogprobs]:
    return [TokenLogprobs(value, [1] * len(top or []), top or [])]


@pytest.mark.parametrize(
    "fields",
    [
        {"ids": [0, 99]},
        {"ids": []},
        {"start": 9},
        {"start": 9, "finish": LENGTH},
        {"start": 0, "ids": list(range(10)), "finish": LENGTH},
        {"finish": Finish("stop")},
        {"start": 10, "ids": [], "finish": LENGTH},
        {"logprobs": logprob(0.0, [-math.inf])},
        {"logprobs": logprob(1e-6)},
    ],
)
def test_what_nodes_send(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"ids": [-1]},
        {"ids": [1, 100]},
        {"ids": [2**63]},
        {"start": -1},
        {"start": 10},
        {"start": 0, "ids": [1] * 11},
        {"start": 2**63},
        {"finish": LENGTH},
        {"logprobs": logprob(0.5)},
        {"logprobs": logprob(math.inf)},
        {"logprobs": logprob(-1.0, [3.0])},
        {"logprobs": [TokenLogprobs(-1.0, [1], [])]},
        {"logprobs": [TokenLogprobs(-1.0, [100], [-1.0])]},
    ],
)
def test_what_no_node_may_send(fields: dict[str, Any]) -> None:
    with pytest.raises(BrokenError) as caught:
        check(**fields)
    assert not caught.value.sick


@pytest.mark.parametrize("values", [logprob(math.nan), logprob(-1.0, [math.nan])])
def test_what_is_not_a_number_may_be_the_models_doing(values: list[TokenLogprobs]) -> None:
    with pytest.raises(BrokenError) as caught:
        check(logprobs=values)
    assert caught.value.sick


def test_of_a_vocabulary_that_is_not_known_any_id_may_be_sent() -> None:
    check_entry(0, [MAX_TOKEN_ID], None, [], MAX_TOKENS, highest_id(0))
    with pytest.raises(BrokenError):
        check_entry(0, [MAX_TOKEN_ID + 1], None, [], MAX_TOKENS, highest_id(0))
