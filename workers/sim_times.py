"""How long the simulated engine's passes take."""

from __future__ import annotations

from dataclasses import dataclass

from mlxfleet.common.config import SimOptions
from mlxfleet.common.messages import PassTime
from mlxfleet.common.slowdown import Slowdown, parse_slowdown

# Decoding rows and prompt tokens of the passes that a model is presented with.
SIZES = ((1, 0), (8, 0), (0, 16), (0, 64), (0, 128))


@dataclass(frozen=True)
class SimTimes:
    """A pass takes a fixed time, some for each decoding row, some for each prompt token, all in
    seconds, and all by the slow-down factor of its moment."""

    step_s: float
    row_s: float
    token_s: float
    slowdown: Slowdown

    @classmethod
    def of(cls, options: SimOptions) -> SimTimes:
        """What the options say."""
        return cls(
            step_s=options.sim_step_ms / 1000,
            row_s=options.sim_row_ms / 1000,
            token_s=1 / options.sim_prefill_tokens_per_s,
            slowdown=parse_slowdown(options.sim_slowdown),
        )

    def pass_s(self, rows: int, tokens: int, *, since_start_s: float) -> float:
        """Seconds of a pass that begins so many seconds after the start."""
        seconds = self.step_s + rows * self.row_s + tokens * self.token_s
        return seconds * self.slowdown.factor(since_start_s)

    def passes(self) -> list[PassTime]:
        """What measuring a few passes at the start would give."""
        return [
            PassTime(rows, tokens, self.pass_s(rows, tokens, since_start_s=0.0))
            for rows, tokens in SIZES
        ]
