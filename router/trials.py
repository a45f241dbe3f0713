"""What nodes have done to one sequence, so that none of them can hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
FAULT_PAUSE_S = 10.0


@dataclass
class Trials:
    """Times are time.monotonic(). The sequence was `sent` to its node, whose worker had restarted
    `restarts` times; since then or since its last token it was `heard` of; the node was `asked` for
    more. `denials`, `gaps` and `breaks` count what went wrong since its last token, `failures` the
    nodes that have given it up. `suspected` are the nodes since its last token whose worker seemed
    to have failed, each with its `restarts`."""

    sent: float = 0.0
    heard: float = 0.0
    asked: bool = False
    answered: bool = False
    restarts: int = 0
    denials: int = 0
    gaps: int = 0
    breaks: int = 0
    failures: int = 0
    suspected: list[tuple[str, int]] = field(default_factory=list)
    _avoided: dict[str, tuple[float, float]] = field(default_factory=dict)

    def was_sent(self, now: float, restarts: int) -> None:
        """It goes to a node."""
        self.sent = self.heard = now
        self.asked = self.answered = False
        self.restarts = restarts

    def brought(self, now: float) -> None:
        """Its node has brought tokens."""
        self.heard = now
        self.asked, self.answered = False, True
        if self.denials or self.gaps or self.breaks or self.suspected or self._avoided:
            self.denials = self.gaps = self.breaks = 0
            self.suspected.clear()
            self._avoided.clear()

    def avoid(self, node: str, now: float, first_s: float = FIRST_PAUSE_S) -> None:
        """Do not try a node for a while, twice as long each time."""
        _, pause_s = self._avoided.get(node, (0.0, 0.0))
        pause_s = max(first_s, min(2 * pause_s, LONGEST_PAUSE_S))
        self._avoided[node] = (now + pause_s, pause_s)

    def avoids(self, node: str, now: float) -> bool:
        """Whether a node should not be tried now."""
        return now < self._avoided.get(node, (0.0, 0.0))[0]
