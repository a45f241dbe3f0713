"""Running requests as operators see them."""

from __future__ import annotations

import msgspec
import pytest

from mlxfleet.common.errors import UnavailableError
from mlxfleet.common.messages import Sampling
from mlxfleet.router.in_flight import InFlight
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.wakeup import Wakeup


def make_sequence(rid: str, **fields: object) -> Sequence:
    sequence = Sequence(
        rid=rid,
        prompt_ids=[7, 8, 9],
        sampling=Sampling(seed=1, max_tokens=50),
        stop=[],
        wakeup=Wakeup(),
        model="m",
    )
    for name, value in fields.items():
        setattr(sequence, name, value)
    return sequence


def test_a_request_is_there_as_long_as_it_runs() -> None:
    requests = InFlight()
    with requests.entry("batch") as entry:
        assert requests.total() == 0
        entry.sequences = [make_sequence("a"), make_sequence("b")]
        assert requests.total() == 2
        assert [(r.id, r.priority) for r in requests.oldest(9)] == [("a", "batch"), ("b", "batch")]
    assert requests.total() == 0
    assert requests.oldest(9) == []


def test_a_request_that_fails_is_gone() -> None:
    requests = InFlight()

    def fail() -> None:
        with requests.entry("batch") as entry:
            entry.sequences = [make_sequence("a")]
            raise UnavailableError("no node")

    with pytest.raises(UnavailableError):
        fail()
    assert requests.total() == 0


def test_the_oldest_come_first_and_the_rest_is_counted() -> None:
    requests = InFlight()
    with requests.entry("interactive") as first, requests.entry("batch") as second:
        second.sequences = [make_sequence("late")]
        first.sequences = [make_sequence("early"), make_sequence("ended", ended=True)]
        assert [r.id for r in requests.oldest(1)] == ["early"]
        assert [r.id for r in requests.oldest(9)] == ["early", "late"]
        assert requests.total() == 2


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "waiting"),
        ({"node": "n0"}, "prefill"),
        ({"node": "n0", "output_ids": [1]}, "decoding"),
        ({"node": "n0", "output_ids": [1], "stranded_since": 1.0}, "waiting"),
        ({"node": "", "output_ids": [1]}, "waiting"),
    ],
)
def test_state(fields: dict[str, object], state: str) -> None:
    requests = InFlight()
    with requests.entry("interactive") as entry:
        entry.sequences = [make_sequence("a", **fields)]
        (running,) = requests.oldest(1)
    assert running.state == state


def test_nothing_of_prompt_or_answer_is_shown() -> None:
    requests = InFlight()
    with requests.entry("interactive") as entry:
        entry.sequences = [make_sequence("a", node="n0", output_ids=[4, 5], session="secret")]
        (running,) = requests.oldest(1)
    shown = msgspec.to_builtins(running)
    assert shown.pop("age_s") >= 0
    assert shown == {
        "id": "a",
        "model": "m",
        "node": "n0",
        "state": "decoding",
        "priority": "interactive",
        "prompt_tokens": 3,
        "tokens": 2,
        "max_tokens": 50,
        "moves": 0,
    }
