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
    more. `denials`, `gaps`, `breaks` and `returns` (of its node, as a new run) count what went
    wrong since its last token, `failures` the nodes that could not finish it; `gave_up` are those
    that said that the model has no next token. `suspected` are the nodes whose worker since then
    seemed to have failed, each with its `restarts`."""

    sent: float = 0.0
    heard: float = 0.0
    asked: bool = False
    answered: bool = False
    restarts: int = 0
    denials: int = 0
    gaps: int = 0
    breaks: int = 0
    returns: int = 0
    failures: int = 0
    gave_up: list[str] = field(default_factory=list)
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
        if self.troubled:
            self.denials = self.gaps = self.breaks = self.returns = 0
            self.suspected.clear()
            self.gave_up.clear()
            self._avoided.clear()

    @property
    def troubled(self) -> bool:
        """Whether anything went wrong since its last token."""
        counted = self.denials or self.gaps or self.breaks or self.returns
        return bool(counted or self.suspected or self.gave_up or self._avoided)

    def avoid(self, node: str, now: float, first_s: float = FIRST_PAUSE_S) -> None:
        """Do not try a node for a while, twice as long each time."""
        _, pause_s = self._avoided.get(node, (0.0, 0.0))
        pause_s = max(first_s, min(2 * pause_s, LONGEST_PAUSE_S))
        self._avoided[node] = (now + pause_s, pause_s)

    def avoids(self, node: str, now: float) -> bool:
        """Whether a node should not be tried now."""
        return now < self._avoided.get(node, (0.0, 0.0))[0]
