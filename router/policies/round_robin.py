"""One node after the other, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

from mlxfleet.router.policies.base import Candidate, Prompt


class RoundRobin:
    """Takes nodes in the order of their names."""

    def __init__(self) -> None:
        self._last = ""

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The node after the last one."""
        names = sorted(node.name for node in nodes)
        self._last = next((name for name in names if name > self._last), names[0])
        return self._last
