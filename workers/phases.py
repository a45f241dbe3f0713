"""What a sequence is doing on its node, as spans: queue, prefill, decode."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxfleet.common.messages import Generate
from mlxfleet.common.tracing import NO_ATTRIBUTES, NO_TRACER, Attributes, Tracer


@dataclass
class Phases:
    """The phases of one sequence, one after the other, and again from the queue on if it has to go
    back there. Times are those of the scheduler's clock, time.monotonic(); `name` is the phase that
    began at `began`, "" when it has left. Nothing is recorded without a `parent`."""

    tracer: Tracer = NO_TRACER
    parent: str = ""
    attributes: Attributes = field(default_factory=dict)
    name: str = ""
    began: float = 0.0

    def enter(self, name: str, now: float, of_last: Attributes = NO_ATTRIBUTES) -> None:
        """The next phase begins; `of_last` is said of the one that it ends, if there is one."""
        if not self.parent:
            return
        if self.name:
            attributes = {**self.attributes, **of_last}
            self.tracer.record(self.name, self.parent, self.began, now, attributes)
        self.name, self.began = name, now

    def leave(self, now: float, why: str, of_last: Attributes = NO_ATTRIBUTES) -> None:
        """The sequence has left queue and worker, perhaps to come back."""
        self.enter("", now, {"mlxfleet.end": why, **of_last})


def untraced(message: Generate) -> Phases:
    """Phases that nobody records."""
    return Phases()
