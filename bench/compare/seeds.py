"""The seeds of loads."""

from __future__ import annotations

import random
from collections.abc import Collection

SEED_BITS = 31


class Seeds:
    """All sides of a round get the same load, but each round, each repetition and each window of a
    warm-up another, so that no prefix cache knows it. Sides that are one server get loads of their
    own, because what the first has asked would be cached for the second."""

    def __init__(self, seed: int, sharing: Collection[str]) -> None:
        self._seed = seed
        self._sharing = sharing

    def of(self, name: str, side: str) -> int:
        """The seed of the load `name` for a side."""
        own = f"/{side}" if side in self._sharing else ""
        return random.Random(f"{self._seed}/{name}{own}").getrandbits(SEED_BITS)
