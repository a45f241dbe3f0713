"""A condition on a ratio, for use in CI."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass

from mlxfleet.bench.records import Verdict
from mlxfleet.common.errors import ConfigError

PATTERN = re.compile(r"\s*(>=|>|<=|<)\s*(\d+(?:\.\d*)?|\.\d+)\s*")


class Outcome(enum.Enum):
    """What a gate says to a verdict."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Gate:
    """`>=` and `<=` hold unless the whole interval is on the other side: they stop what is shown to
    be wrong. `>` and `<` hold only if the whole interval is on their side: they want it shown.

    `sees` is the difference that a run must have been able to see; one that was too noisy for that
    leaves `>=` and `<=` undecided rather than passed.
    """

    operator: str
    limit: float
    sees: float

    def decide(self, verdict: Verdict) -> Outcome:
        """Whether the condition holds."""
        low, high = verdict.low, verdict.high
        match self.operator:
            case ">":
                return Outcome.PASSED if low > self.limit else Outcome.FAILED
            case "<":
                return Outcome.PASSED if high < self.limit else Outcome.FAILED
            case ">=":
                refuted = high < self.limit
            case _:
                refuted = low > self.limit
        if refuted:
            return Outcome.FAILED
        return Outcome.PASSED if verdict.smallest_visible <= self.sees else Outcome.UNDECIDED

    def __str__(self) -> str:
        return f"{self.operator}{self.limit:g}"


def parse_gate(text: str, sees: float) -> Gate:
    """Read `>=1.0` and the like; ConfigError if it is something else."""
    match = PATTERN.fullmatch(text)
    limit = float(match[2]) if match else 0.0
    if match is None or not 0 < limit < math.inf:
        raise ConfigError(f"--gate {text!r}: give >=, >, <= or < and a ratio, such as '>=1.0'")
    return Gate(match[1], limit, sees)
