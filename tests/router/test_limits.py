"""How long a sequence may be, on one node and on the largest."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.messages import ModelInfo
from mlxfleet.router.limits import (
    MOST_LOGPROBS,
    Limits,
    check_answer,
    check_length,
    check_prompts,
    largest,
)
from mlxfleet.router.parameters import CompletionRequest
from tests.router.reports import make_model


def limited(context: int, kv_bytes: int, *, in_slabs: bool = False) -> Limits:
    """The limits of a node with a byte of keys and values for each token."""
    fields = {"context_length": context, "kv_budget_bytes": kv_bytes, "in_slabs": in_slabs}
    return Limits.of(msgspec.structs.replace(make_model(), **fields))


@given(
    context=st.integers(1, 5000),
    budget=st.integers(0, 20_000),
    per_token=st.integers(0, 9),
    fixed=st.integers(0, 500),
    window=st.tuples(st.integers(1, 900), st.integers(0, 9)),
    in_slabs=st.booleans(),
    tokens=st.integers(1, 6000),
)
def test_tokens_fit_if_context_and_memory_take_them(
    context: int,
    budget: int,
    per_token: int,
    fixed: int,
    window: tuple[int, int],
    in_slabs: bool,
    tokens: int,
) -> None:
    model = ModelInfo(
        vocab_size=10,
        context_length=context,
        eos_ids=[],
        kv_budget_bytes=budget,
        fixed_bytes=fixed,
        bytes_per_token=per_token,
        windowed=[window],
        weights_bytes=0,
        in_slabs=in_slabs,
    )
    fits = tokens <= context and model.kv_bytes(tokens) <= budget
    assert (tokens <= Limits.of(model).tokens) is fits


def test_the_largest_is_the_one_with_the_longest_sequence() -> None:
    wide, deep = limited(1000, 100), limited(500, 400)
    assert largest([wide, deep]) is deep
    assert largest([]) is None


def test_a_refusal_has_the_numbers() -> None:
    limits = limited(100, 50_000)
    check_prompts([[1] * 99], limits, "prompt")
    check_length([[1] * 60], 40, limits, "prompt")
    with pytest.raises(InvalidRequestError, match="100 tokens, but the context has only 100"):
        check_prompts([[1], [1] * 100], limits, "prompt")
    with pytest.raises(InvalidRequestError, match=r"60 prompt tokens and 41 .* length of 100"):
        check_length([[1] * 60], 41, limits, "prompt")
    with pytest.raises(InvalidRequestError, match="no tokens"):
        check_prompts([[]], limits, "prompt")
    with pytest.raises(InvalidRequestError, match="need 2 MB of KV cache, more than the 1 MB"):
        check_length([[1] * 10], 2_000_000, limited(10_000_000, 1_000_000), "prompt")


def test_log_probabilities_that_are_too_many_to_hold_have_to_be_streamed() -> None:
    wide = CompletionRequest(prompt=["a", "b"], n=10)
    most = MOST_LOGPROBS // (20 * 21)
    check_answer(wide, most, 20)
    check_answer(wide, 100 * most, None)
    check_answer(CompletionRequest(prompt=["a", "b"], n=10, stream=True), 100 * most, 20)
    with pytest.raises(InvalidRequestError, match="stream it") as caught:
        check_answer(wide, most + 1, 20)
    assert (caught.value.param, caught.value.code) == ("logprobs", "answer_too_large")
