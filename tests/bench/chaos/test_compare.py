"""Which differences from the undisturbed answer are found, and what they are called."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlxfleet.bench.chaos.answers import Answer, Choice, Entry, Usage
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.chaos.compare import compare, compare_beginning

EXPECTED = Answer(
    [Choice("one two three", "length", [Entry("one", -1.0, {"one": -1.0, "two": -1.5})])],
    Usage(4, 3, 7),
)


def case(**fields: Any) -> Case:
    """A request for three tokens."""
    body = {"prompt": "count", "max_tokens": 3}
    return Case(name="request 0", endpoint="completions", body=body, key=0, **fields)


def answer(**changes: Any) -> Answer:
    """The expected answer but for changes of its choice."""
    choice = msgspec.structs.replace(EXPECTED.choices[0], **changes)
    return Answer([choice], EXPECTED.usage)


def test_the_same_answer_is_right() -> None:
    assert compare(case(), answer(), EXPECTED) is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"text": "one two four"}, "wrong"),
        ({"text": "one two"}, "wrong"),
        ({"text": "one two three three"}, "doubled"),
        ({"finish_reason": "stop"}, "wrong"),
        ({"logprobs": []}, "wrong"),
        ({"logprobs": [Entry("one", -1.1, {"one": -1.1, "two": -1.5})]}, "wrong"),
        ({"logprobs": [Entry("one", -1.0, {"one": -1.0})]}, "wrong"),
        ({"logprobs": [Entry("one", -1.0)] * 4}, "doubled"),
    ],
)
def test_a_difference_is_found(changes: dict[str, Any], kind: str) -> None:
    finding = compare(case(), answer(**changes), EXPECTED)
    assert finding is not None
    assert finding.kind == kind


def test_rounding_of_log_probabilities_is_none() -> None:
    rounded = Entry("one", -1.00001, {"one": -1.00001, "two": -1.49999})
    assert compare(case(), answer(logprobs=[rounded]), EXPECTED) is None


@pytest.mark.parametrize(("completion", "kind"), [(2, "wrong"), (4, "doubled")])
def test_token_counts_are_compared(completion: int, kind: str) -> None:
    counted = Answer(EXPECTED.choices, Usage(4, completion, 4 + completion))
    finding = compare(case(), counted, EXPECTED)
    assert finding is not None
    assert finding.kind == kind


def test_without_a_seed_only_counts_and_ends_are_compared() -> None:
    assert compare(case(exact=False), answer(text="something else"), EXPECTED) is None
    longer = Answer(EXPECTED.choices, Usage(4, 4, 8))
    finding = compare(case(exact=False), longer, EXPECTED)
    assert finding is not None
    assert finding.kind == "doubled"


def test_what_a_client_has_read_that_left_is_the_beginning() -> None:
    part = Answer([Choice("one two")])
    assert compare_beginning(case(leaves_after_events=2), part, EXPECTED) is None
    repeated = Answer([Choice("one one")])
    assert compare_beginning(case(leaves_after_events=2), repeated, EXPECTED) is not None
