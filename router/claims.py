"""Two nodes under one name: is it the same one, started again, or a second one?"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

# A live node reports every 0.25 s. What it had sent before it died has come within the first span.
STRAY_S = 0.5
TAKE_AFTER_S = 1.25
FORGET_AFTER_S = 30.0


class Verdict(enum.Enum):
    """What to do with a node that claims a name in use."""

    WAIT = "wait"
    TAKE = "take"
    REFUSE = "refuse"


@dataclass
class NameClaims:
    """Keeps since when each claimant has asked for a name; times are monotonic seconds."""

    _since: dict[bytes, float] = field(default_factory=dict)

    def judge(self, claimant: bytes, owner_last_heard: float, now: float) -> Verdict:
        """The claimant gets the name when the owner has said nothing since it first asked, and is
        refused when the owner still speaks."""
        self._since = {k: t for k, t in self._since.items() if now - t < FORGET_AFTER_S}
        since = self._since.setdefault(claimant, now)
        if owner_last_heard > since + STRAY_S:
            verdict = Verdict.REFUSE
        elif now - since >= TAKE_AFTER_S:
            verdict = Verdict.TAKE
        else:
            return Verdict.WAIT
        del self._since[claimant]
        return verdict
