"""One node after the other, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

from mlxfleet.router.policies.base import Candidate, Prompt


class RoundRobin:
    """Takes nodes in the order of their names. One of weight 0.5 is passed over every second time,
    and so on; at least one of the nodes has weight 1."""

    def __init__(self) -> None:
        self._last = ""
        # Of each node: what of a request it is owed.
        self._credit: dict[str, float] = {}

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The node after the last one whose turn it is."""
        weights = {node.name: node.weight for node in nodes}
        names = sorted(weights)
        self._credit = {name: self._credit.get(name, 0.0) for name in names}
        while True:
            self._last = next((name for name in names if name > self._last), names[0])
            self._credit[self._last] += weights[self._last]
            if self._credit[self._last] >= 1:
                self._credit[self._last] -= 1
                return self._last
