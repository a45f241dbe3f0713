"""The node with the least to do, for comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mlxfleet.router.policies.base import Candidate, Prompt, pick_least


class LeastLoaded:
    """Counts sequences."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The node with the fewest sequences."""
        return pick_least(self._rng, nodes)
