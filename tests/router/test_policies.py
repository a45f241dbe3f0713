"""Which node each policy chooses."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mlxfleet.router.policies.base import Candidate, Policy, Prompt
from mlxfleet.router.policies.least_loaded import LeastLoaded
from mlxfleet.router.policies.power_of_two import PowerOfTwo
from mlxfleet.router.policies.round_robin import RoundRobin
from mlxfleet.router.policies.session import Session
from mlxfleet.router.policies.ttft import Ttft

PROMPT = Prompt(1000)


def node(name: str, **fields: object) -> Candidate:
    """An idle node that computes 1,000 tokens a second."""
    known = {"slots": 32, "room": 64, "prefill_tokens_per_s": 1000.0, "cache_blocks": 1000}
    free = {"free_blocks": 1000}
    return Candidate(name=name, **{**known, **free, **fields})  # type: ignore[arg-type]


def pick(*nodes: Candidate, prompt: Prompt = PROMPT) -> str:
    """What the default policy chooses."""
    return Ttft(random.Random(1)).pick(prompt, nodes)


def test_ties_are_random() -> None:
    policy = Ttft(random.Random(1))
    chosen = Counter(policy.pick(PROMPT, [node("a"), node("b"), node("c")]) for _ in range(300))
    assert min(chosen[name] for name in "abc") > 50


@pytest.mark.parametrize(
    "better",
    [
        {"prefill_tokens_per_s": 2000.0},
        {"waiting_tokens": 0},
        {"decode_step_s": 0.01},
        {"weight": 1.0},
        {"cached_tokens": 500},
        {"free_blocks": 900},
    ],
    ids=str,
)
def test_the_node_that_answers_sooner_is_chosen(better: dict[str, object]) -> None:
    worse = {"waiting_tokens": 200, "decode_step_s": 0.02, "weight": 0.7, "free_blocks": 500}
    worse = {key: value for key, value in worse.items() if key in better}
    assert pick(node("a", **worse), node("b", **better)) == "b"


def test_a_short_answer_cares_less_for_slow_steps() -> None:
    nodes = node("a", decode_step_s=0.02), node("b", waiting_tokens=200)
    assert pick(*nodes, prompt=Prompt(1000, max_tokens=100)) == "b"
    assert pick(*nodes, prompt=Prompt(1000, max_tokens=5)) == "a"


def test_a_conversation_stays_until_its_node_is_saturated() -> None:
    other = node("b")
    assert pick(node("a", cached_tokens=900, waiting_tokens=1000), other) == "a"
    assert pick(node("a", cached_tokens=900, waiting_tokens=2000), other) == "b"


def test_who_has_to_wait_for_a_slot_goes_elsewhere() -> None:
    full = node("a", cached_tokens=990, sequences=40, slots=32, sequence_s=20.0)
    assert pick(full, node("b")) == "b"
    assert (
        pick(
            node("a", cached_tokens=990, kv_full=True, sequences=4, queued=2, sequence_s=8.0),
            node("b"),
        )
        == "b"
    )


def test_a_new_conversation_goes_where_it_pushes_out_what_is_old() -> None:
    fresh = node("a", free_blocks=0, cache_age_s=10.0)
    stale = node("b", free_blocks=0, cache_age_s=100.0)
    assert pick(fresh, stale) == "b"
    assert pick(stale, node("c", free_blocks=100)) == "c"


def test_a_node_that_has_measured_nothing_is_taken_for_an_average_one() -> None:
    assert pick(node("a", prefill_tokens_per_s=0.0), node("b", waiting_tokens=100)) == "a"
    unknown = [node(name, prefill_tokens_per_s=0.0) for name in "ab"]
    assert pick(*unknown) in "ab"


def test_without_a_prefix_cache_there_is_no_room_to_look_for() -> None:
    assert pick(node("a", cache_blocks=0, free_blocks=0), node("b", waiting_tokens=100)) == "a"


def test_round_robin_takes_turns_also_when_nodes_change() -> None:
    policy = RoundRobin()
    assert [policy.pick(PROMPT, [node("b"), node("a")]) for _ in range(3)] == ["a", "b", "a"]
    assert policy.pick(PROMPT, [node("c")]) == "c"
    assert policy.pick(PROMPT, [node("a"), node("c")]) == "a"


def test_round_robin_passes_over_those_that_are_not_well() -> None:
    policy = RoundRobin()
    nodes = [node("a"), node("b", weight=0.5), node("c", weight=0.25)]
    chosen = Counter(policy.pick(PROMPT, nodes) for _ in range(140))
    assert chosen == {"a": 80, "b": 40, "c": 20}


def test_what_is_slow_already_is_not_slowed_down_once_more() -> None:
    """Times are those of now, and a weight of 0.5 says no more than a slow-down of 2 does."""
    slow = node("a", decode_step_s=0.02, weight=0.5, slowdown=2.0)
    assert pick(slow, node("b", decode_step_s=0.03)) == "a"
    # Fast now, but its memory is short.
    swaps = node("a", decode_step_s=0.02, weight=0.25)
    assert pick(swaps, node("b", decode_step_s=0.03)) == "b"


def test_a_node_that_is_not_well_gets_what_others_have_no_room_for() -> None:
    full = node("a", sequences=40, slots=32, sequence_s=20.0)
    assert pick(full, node("b", weight=0.25)) == "b"


def test_least_loaded_counts_sequences() -> None:
    policy = LeastLoaded(random.Random(1))
    nodes = [node("a", sequences=2), node("b", sequences=1), node("c", sequences=1, weight=0.3)]
    assert policy.pick(PROMPT, nodes) == "b"


def test_the_worst_of_many_is_not_among_the_better_of_two() -> None:
    policy = PowerOfTwo(random.Random(1))
    nodes = [node(name, sequences=count) for count, name in enumerate("abc")]
    chosen = Counter(policy.pick(PROMPT, nodes) for _ in range(300))
    assert chosen["a"] > chosen["b"] > 50
    assert chosen["c"] == 0
    assert policy.pick(PROMPT, nodes[:1]) == "a"


def test_a_session_stays_and_moves_only_if_its_node_is_gone() -> None:
    policy: Policy = Session(RoundRobin())
    nodes = [node(name) for name in "abcd"]
    prompts = [Prompt(10, session=str(session)) for session in range(200)]
    before = [policy.pick(prompt, nodes) for prompt in prompts]
    assert before == [policy.pick(prompt, nodes[::-1]) for prompt in prompts]
    assert min(Counter(before).values()) > 25
    after = [policy.pick(prompt, nodes[1:]) for prompt in prompts]
    assert all(was in ("a", now) for was, now in zip(before, after, strict=True))


def test_without_a_session_another_policy_chooses() -> None:
    policy = Session(RoundRobin())
    assert [policy.pick(PROMPT, [node("a"), node("b")]) for _ in range(2)] == ["a", "b"]
