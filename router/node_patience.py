"""How long a node may bring nothing, by what it says of itself.

A node that is slow says so in its reports, so it is given the time that it claims to need, several
times over. One that claims to be fast, or to have nothing to do, is taken at its word: it cannot
keep requests by boasting.
"""

from __future__ import annotations

from mlxfleet.common.messages import NodeStatus

# No claim makes a node lose a request sooner than this.
LEAST_S = 3.0
# Of the time that a node claims to need.
FACTOR = 5.0
# As long as no node has measured its speed.
UNKNOWN_TOKENS_PER_S = 100.0
# A decoding row may wait for so many passes, in which prompts are computed beside it.
PASSES = 10.0
# One of many sequences may have to wait for the others.
BESIDE_OTHERS = 3.0
# In a queue that moves.
IN_QUEUE_S = 60.0
# What a claim can make of it: nobody serves with nodes slower than these.
SLOWEST_TOKENS_PER_S = 10.0
LONGEST_STEP_S = 30.0


def node_patience_s(status: NodeStatus, prompt_tokens: int) -> float:
    """How long a node with so many prompt tokens to compute may bring no token at all."""
    rate = max(status.prefill_tokens_per_s or UNKNOWN_TOKENS_PER_S, SLOWEST_TOKENS_PER_S)
    mean_pass_s = status.busy_s / status.steps if status.steps else 0.0
    step_s = min(max(status.decode_step_s, mean_pass_s), LONGEST_STEP_S)
    needed_s = prompt_tokens / rate + PASSES * step_s
    return LEAST_S + FACTOR * needed_s


def sequence_patience_s(status: NodeStatus, node_s: float, sequences: int) -> float:
    """How long one of a node's `sequences` may get no token while others do. A node that says that
    it has fewer has lost some, and none of them is in its queue."""
    lost = status.running + status.queued < sequences
    if status.queued and not lost:
        return max(IN_QUEUE_S, BESIDE_OTHERS * node_s)
    return BESIDE_OTHERS * node_s
