"""The node that is expected to give the first token soonest, all in all.

A prompt waits for a slot, then for the prompts before it, then for what of it is not cached. To
this come, in seconds too, what its choice costs others: its row in every decode step; what is
computed though another node has it cached (so a conversation stays where it is until that node is
saturated); and what it pushes out of a full prefix cache, which hurts the more the sooner that is
needed again.

Reports have what passes take now, so a node that is slow all the time needs no weight here. What
its weight says beyond that is how long things take on it every now and then, as when it swaps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.router.policies.base import Candidate, Prompt

# As long as no node has measured its speed.
UNKNOWN_TOKENS_PER_S = 1000.0
# Decode steps that a request is taken to need, if it may have so many.
DECODE_STEPS = 64
# Of the time that it takes to compute again what another node has.
STICKINESS = 1.0
# What is pushed out is more than the prompt: a conversation grows.
EVICTION = 2.0
TIE_SHARE = 0.02
TIE_S = 0.001


class Ttft:
    """Estimates, and takes the best; ties go where the prefix is, then where the cache has the most
    room, then at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The node with the least cost in seconds."""
        usual = usual_rate(nodes)
        most_cached = max(node.cached_tokens for node in nodes)
        evicted = [node for node in nodes if evicts(node, prompt)]
        youngest_s = min((node.cache_age_s for node in evicted), default=0.0)
        steps = min(prompt.max_tokens, DECODE_STEPS)
        costs = []
        for node in nodes:
            needed = prompt.tokens - node.cached_tokens
            again = STICKINESS * (most_cached - node.cached_tokens)
            if evicts(node, prompt):
                again += EVICTION * needed * urgency(node, youngest_s)
            rate = node.prefill_tokens_per_s or usual
            prefill_s = (node.waiting_tokens + needed + again) / rate
            seconds = slot_wait_s(node) + prefill_s + steps * node.decode_step_s
            costs.append(seconds * node.foreboding)
        limit = min(costs) * (1 + TIE_SHARE) + TIE_S
        tied = [node for node, cost in zip(nodes, costs, strict=True) if cost <= limit]
        best = max((node.cached_tokens, node.free_blocks) for node in tied)
        return self._rng.choice(
            [node.name for node in tied if (node.cached_tokens, node.free_blocks) == best]
        )


def usual_rate(nodes: Sequence[Candidate]) -> float:
    """Prompt tokens per second of a node that has not measured its own."""
    known = [node.prefill_tokens_per_s for node in nodes if node.prefill_tokens_per_s > 0]
    return sum(known) / len(known) if known else UNKNOWN_TOKENS_PER_S


def slot_wait_s(node: Candidate) -> float:
    """How long until enough of a node's sequences are over: they leave evenly."""
    ahead = node.sequences + 1 - node.slots
    if ahead <= 0 and node.kv_full:
        ahead = node.queued + 1
    if ahead <= 0:
        return 0.0
    return ahead * node.sequence_s / max(min(node.sequences, node.slots), 1)


def evicts(node: Candidate, prompt: Prompt) -> bool:
    """Whether what is new of the prompt pushes something out of the node's prefix cache."""
    new_blocks = (prompt.tokens - node.cached_tokens) / BLOCK_TOKENS
    return node.cache_blocks > 0 and node.free_blocks < new_blocks


def urgency(node: Candidate, youngest_s: float) -> float:
    """How soon what is pushed out is needed, from 1 on the node that would lose what was used
    last, down to 0 where it has not been used for long."""
    return youngest_s / node.cache_age_s if node.cache_age_s > 0 else 1.0
