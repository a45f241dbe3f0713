"""The options of `mlxfleet bench compare`, besides those of the load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mlxfleet.bench.compare.figure import Figure, parse_figure
from mlxfleet.bench.compare.gate import Gate, parse_gate
from mlxfleet.bench.compare.intervals import least_blocks
from mlxfleet.bench.compare.rounds import Pace
from mlxfleet.bench.compare.verdict import each_confidence
from mlxfleet.bench.serve_options import ArrivalOptions
from mlxfleet.bench.servers import READY_TIMEOUT_S
from mlxfleet.common.errors import ConfigError

DEFAULT_BLOCKS = 12
DEFAULT_CONFIDENCE = 0.99
MOST_BLOCKS = 500


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, how often, and how sure the verdict has to be."""

    figure: Annotated[tuple[str, ...], Parameter(negative=())] = ("output_tokens_per_s",)
    """What is compared: a field of the summary, such as output_tokens_per_s or ttft_ms.p50; may be
    given several times. Warm-up and gate go by the first."""

    blocks: int = DEFAULT_BLOCKS
    """Blocks of two rounds, the second in the reverse order of the first: ABBA or BAAB. Each round
    measures every side once."""

    confidence: float = DEFAULT_CONFIDENCE
    """How sure all verdicts together are to claim no difference that is not there."""

    gate: str | None = None
    """Condition on the ratio of every side to the first, more than 1 being better. '>=1.0' fails if
    the ratio is shown to be less (exit status 74), '>0.97' unless it is shown to be more."""

    gate_sees: float = 0.1
    """The smallest difference that a run with a gate of >= or <= must be able to see; if it is
    noisier, the gate is undecided (exit status 75)."""

    alive: Literal["one", "all"] = "one"
    """Whether servers that are started from commands run one at a time, each started anew for its
    turn, or all at once from begin to end."""

    baseline_s: float = 5.0
    """How long the sensors of the machine at rest are watched before anything runs."""

    cooldown_s: float = 10.0
    """Pause before each turn where there is no sensor of temperature."""

    cooldown_limit_s: float = 120.0
    """Where there is one: longest wait before a turn until temperature and clocks are as they were
    at rest."""

    cooldown_margin_c: float = 2.0
    """Degrees that may be left of a turn's heat."""

    warmup_windows: int = 3
    """A side is warm when the figure of so many short loads in a row agrees."""

    warmup_tolerance: float = 0.05
    """How far apart they may be, as a share."""

    warmup_limit: int = 12
    """Most short loads before a turn; then it goes on, and the turn is marked."""

    warmup_requests: int | None = None
    """Requests of such a short load; one for each stream, and 8 at least, if not given."""

    repeats: int = 2
    """How often a round is repeated in which memory pressure or the thermal state rose. After that
    it counts, and is marked."""

    ready_timeout_s: float = READY_TIMEOUT_S
    """How long a started server may take until it answers."""

    logs: Path | None = None
    """Folder for the output of started servers; a new temporary one if not given."""

    def checked(self, sides: int, arrival: ArrivalOptions) -> CompareOptions:
        """ConfigError for what can be told to be wrong before anything starts."""
        if len(arrival.concurrency) > 1 or len(arrival.request_rate) > 1:
            raise ConfigError(
                "compare at one --concurrency or --request-rate; run it once for each"
            )
        if arrival.warmup:
            raise ConfigError("--warmup: servers are warmed up until they are steady; leave it out")
        counts = {
            "--warmup-windows": self.warmup_windows,
            "--warmup-limit": self.warmup_limit - self.warmup_windows + 1,
            "--warmup-requests": 1 if self.warmup_requests is None else self.warmup_requests,
        }
        for flag, count in counts.items():
            if count < 1:
                raise ConfigError(f"{flag} is too small")
        times = {
            "--baseline-s": self.baseline_s,
            "--cooldown-s": self.cooldown_s,
            "--cooldown-limit-s": self.cooldown_limit_s,
            "--cooldown-margin-c": self.cooldown_margin_c,
            "--warmup-tolerance": self.warmup_tolerance,
            "--repeats": self.repeats,
        }
        for flag, value in times.items():
            if not value >= 0:
                raise ConfigError(f"{flag} cannot be negative")
        for flag, value in {
            "--gate-sees": self.gate_sees,
            "--ready-timeout-s": self.ready_timeout_s,
        }.items():
            if not value > 0:
                raise ConfigError(f"{flag} must be more than 0")
        self.figures()
        self.parsed_gate()
        self._check_confidence(sides)
        return self

    def _check_confidence(self, sides: int) -> None:
        if not 0.5 <= self.confidence < 1:
            raise ConfigError("--confidence must be from 0.5 to below 1")
        least = least_blocks(self.each_confidence(sides))
        if not least <= self.blocks <= MOST_BLOCKS:
            raise ConfigError(
                f"--blocks must be {least} to {MOST_BLOCKS}: {self.verdicts(sides)} verdicts that"
                f" are right together with {self.confidence:.3%} need {least}"
            )

    def verdicts(self, sides: int) -> int:
        """How many there are: one for each figure and side but the first."""
        return len(self.figures()) * (sides - 1)

    def each_confidence(self, sides: int) -> float:
        """Of a verdict's interval."""
        return each_confidence(self.confidence, self.verdicts(sides))

    def figures(self) -> list[Figure]:
        """Those that are compared, each once; ConfigError if one is unknown."""
        return [parse_figure(path) for path in dict.fromkeys(self.figure)]

    def parsed_gate(self) -> Gate | None:
        """The gate, if there is one; ConfigError if it is none."""
        return None if self.gate is None else parse_gate(self.gate, self.gate_sees)

    def pace(self) -> Pace:
        """How long things may take."""
        return Pace(
            baseline_s=self.baseline_s,
            cooldown_s=self.cooldown_s,
            cooldown_limit_s=self.cooldown_limit_s,
            cooldown_margin_c=self.cooldown_margin_c,
            warmup_windows=self.warmup_windows,
            warmup_tolerance=self.warmup_tolerance,
            warmup_limit=self.warmup_limit,
            repeats=self.repeats,
        )
