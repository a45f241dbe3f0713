"""Two nodes: conversations find the one that has their beginning, also after a worker's restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from tests.integration.fleet import Fleet, wait_for

NODES = ["node-0", "node-1"]
CONVERSATIONS = 8
# Long enough that computing them again would take longer than what measured speeds vary by.
LINES = 120


@pytest.fixture(scope="module")
def two_nodes(tiny_model: Path) -> Iterator[Fleet]:
    with Fleet("--model", str(tiny_model), "--memory-gb", "1", "--nodes", "2") as fleet:
        wait_until_both_are_ready(fleet)
        yield fleet


def wait_until_both_are_ready(fleet: Fleet) -> None:
    wait_for(
        lambda: all(fleet.metric("mlxfleet_node_ready", node=node) for node in NODES),
        "both nodes",
    )


class Conversation:
    """A prompt that grows by each answer."""

    def __init__(self, number: int) -> None:
        self.text = " ".join(f"Story {number} has a line {line}." for line in range(LINES))

    def turn(self, fleet: Fleet) -> dict[str, Any]:
        """One more answer; its usage."""
        body = {"prompt": self.text, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        status, answer, _ = fleet.post("/v1/completions", body)
        assert status == 200, answer
        self.text += answer["choices"][0]["text"] + " And then?"
        usage: dict[str, Any] = answer["usage"]
        return usage


def turn_together(fleet: Fleet, conversations: list[Conversation]) -> list[dict[str, Any]]:
    """A turn of each, at the same time, so that no node can have them all."""
    with ThreadPoolExecutor(len(conversations)) as pool:
        return list(pool.map(lambda conversation: conversation.turn(fleet), conversations))


def cached(usage: dict[str, Any]) -> int:
    found: int = usage["prompt_tokens_details"]["cached_tokens"]
    return found


def indexed(fleet: Fleet, node: str) -> float:
    return fleet.metric("mlxfleet_cache_index_blocks", node=node)


def test_conversations_find_their_node_again(two_nodes: Fleet) -> None:
    conversations = [Conversation(number) for number in range(CONVERSATIONS)]
    before = [usage["prompt_tokens"] for usage in turn_together(two_nodes, conversations)]
    wait_for(lambda: all(indexed(two_nodes, node) for node in NODES), "blocks of both")
    for conversation, tokens in zip(conversations, before, strict=True):
        assert cached(conversation.turn(two_nodes)) >= tokens - BLOCK_TOKENS
    assert two_nodes.metric("mlxfleet_cache_event_gaps_total") == 0
    assert two_nodes.metric("mlxfleet_stage_seconds_count", stage="route") >= 2 * CONVERSATIONS


@pytest.mark.parametrize(("victim", "first"), [("worker", 100), ("scheduler", 200)])
def test_what_a_restarted_node_had_is_forgotten(two_nodes: Fleet, victim: str, first: int) -> None:
    # Not those of another test, which one node may have all of.
    conversations = [Conversation(first + number) for number in range(CONVERSATIONS)]
    turn_together(two_nodes, conversations)
    wait_for(lambda: all(indexed(two_nodes, node) for node in NODES), "blocks of both")
    two_nodes.kill(f"{victim}-0")
    wait_for(lambda: indexed(two_nodes, "node-0") == 0, "an empty node")
    assert indexed(two_nodes, "node-1") > 0
    wait_until_both_are_ready(two_nodes)
    for conversation in conversations:
        conversation.turn(two_nodes)
    found = [cached(conversation.turn(two_nodes)) for conversation in conversations]
    assert min(found) > BLOCK_TOKENS, (found, two_nodes.get("/metrics")[1])


@pytest.mark.parametrize("routing", ["round_robin", "session"])
def test_another_policy_can_be_chosen(tiny_model: Path, routing: str) -> None:
    options = ["--model", str(tiny_model), "--memory-gb", "1", "--nodes", "2", "--routing", routing]
    with Fleet(*options) as fleet:
        wait_until_both_are_ready(fleet)
        for number in range(4):
            body = {"prompt": f"Once upon a time {number}", "max_tokens": 2}
            assert fleet.post("/v1/completions", body, {"X-Session-Id": "s"})[0] == 200

        def prefilled() -> list[bool]:
            name = "mlxfleet_prefilled_tokens_total"
            return sorted(fleet.metric(name, node=node) > 0 for node in NODES)

        expected = [routing == "round_robin", True]
        wait_for(lambda: prefilled() == expected, "the nodes to report")
