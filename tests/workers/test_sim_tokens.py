"""Tokens of the simulated engine."""

from __future__ import annotations

import math
from array import array

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.messages import Sampling
from mlxfleet.workers.sim_tokens import Vocabulary, sequence_key


def key(prompt: list[int], seed: int = 1, temperature: float = 1.0) -> int:
    return sequence_key(
        array("I", prompt), Sampling(seed=seed, max_tokens=1, temperature=temperature)
    )


def test_tokens_stay_what_they_are() -> None:
    """A number that changes here changes the output of nodes of different versions."""
    vocabulary = Vocabulary(49152, [2])
    assert [vocabulary.token(key([1, 2, 3], seed=7), i) for i in range(4)] == [
        20416,
        7411,
        34250,
        29,
    ]


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 10**6))
def test_the_seed_matters_unless_the_request_is_greedy(seed: int, position: int) -> None:
    vocabulary = Vocabulary(10**9, [])
    here = vocabulary.token(key([5], seed), position)
    assert here == vocabulary.token(key([5], seed), position)
    assert here != vocabulary.token(key([5], seed ^ 1), position)
    assert key([5], seed, 0.0) == key([5], seed ^ 1, 0.0)


def test_prompt_and_position_matter() -> None:
    vocabulary = Vocabulary(10**9, [])
    drawn = [vocabulary.token(key([prompt]), at) for prompt in range(20) for at in range(20)]
    assert len(set(drawn)) == len(drawn)
    assert key([1, 2]) != key([2, 1])


@given(
    size=st.integers(4, 40),
    eos_ids=st.sets(st.integers(0, 60), max_size=3),
    start=st.integers(0, 2**64 - 1),
)
def test_every_token_but_the_ends_is_drawn(size: int, eos_ids: set[int], start: int) -> None:
    vocabulary = Vocabulary(size, eos_ids)
    drawn = {vocabulary.token(start, position) for position in range(size * 30)}
    assert drawn == set(range(size)) - eos_ids


def test_alternatives_are_equally_likely_and_differ() -> None:
    vocabulary = Vocabulary(12, [3, 0])
    found = vocabulary.logprobs(5, 1, 20)
    assert found.top_ids[0] == vocabulary.token(5, 1)
    assert sorted(found.top_ids) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert {found.logprob, *found.top_logprobs} == {-math.log(10)}
    assert vocabulary.logprobs(5, 1, 0).top_ids == []
