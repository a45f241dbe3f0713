"""What a routing policy is given, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class Prompt(Struct, frozen=True):
    """A request to be placed: its prompt's length, how many tokens its answer may have, and the
    session it belongs to, if it says so."""

    tokens: int
    max_tokens: int = 64
    session: str | None = None


class Candidate(Struct, frozen=True, kw_only=True):
    """A node that could take a request.

    `cached_tokens` of the prompt are there already. `sequences` run or wait there, `queued` of them
    for sure; `slots` run at once, and `room` is what it takes in all. `waiting_tokens` of prompts
    are to be computed first, at `prefill_tokens_per_s` (0: unknown). `decode_step_s` is a decode
    step with this request in it, `sequence_s` how long sequences run. `kv_full` says that it would
    have to wait for memory. Of the prefix cache's `cache_blocks` so many are free; the one to be
    evicted next has not been used for `cache_age_s`. `weight` is how much of its usual work the
    node should get, 1 for all of it and less if its machine is not well; `slowdown` is how many
    times as long as usual its times are already.
    """

    name: str
    cached_tokens: int = 0
    sequences: int = 0
    queued: int = 0
    slots: int = 1
    room: int = 1
    waiting_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    sequence_s: float = 0.0
    kv_full: bool = False
    cache_blocks: int = 0
    free_blocks: int = 0
    cache_age_s: float = 0.0
    weight: float = 1.0
    slowdown: float = 1.0

    @property
    def foreboding(self) -> float:
        """By how much times may get longer than they are now, going by the weight; at least 1."""
        return max(1.0, 1 / (self.weight * self.slowdown))


class Policy(Protocol):
    """A way to choose."""

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The name of one of `nodes`, of which there is at least one."""


def pick_least(rng: random.Random, nodes: Sequence[Candidate]) -> str:
    """The node with the fewest sequences for its weight, with this one; ties at random."""
    loads = [(node.sequences + 1) / node.weight for node in nodes]
    least = min(loads)
    return rng.choice([n.name for n, load in zip(nodes, loads, strict=True) if load == least])
