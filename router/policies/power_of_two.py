"""The better of two random nodes, for comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mlxfleet.router.policies.base import Candidate, Prompt, pick_least


class PowerOfTwo:
    """Counts the sequences of two nodes, which keeps many routers from flocking to one node."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """Of two random nodes the one with fewer sequences."""
        return pick_least(self._rng, self._rng.sample(nodes, min(2, len(nodes))))
