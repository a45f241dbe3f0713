"""How much slower a machine is than it was when it was cool, from the times of its passes.

Only like is compared with like: passes of as many decoding rows and prompt tokens, over about as
much context. What such passes take at best is the median of a few, so that neither one that was
held up nor one whose time was partly hidden says anything; whatever is faster becomes the new
best. How slow it is now is the median over the last passes of known kinds, in units of their best.

The fitted cost of passes (`chunking.PassCost`) is of no use here: it follows the heat, and slowly.
`relief` is what brings it up to date, so that a node that has stalled once does not look slow for
long.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from mlxfleet.common.kv_sizes import CHUNK_TILE
from mlxfleet.workers.chunking import FORGETTING

# Passes of a kind of which the median counts.
GROUP = 8
# Passes of any known kind that say how it is now; with fewer the last verdict holds.
RECENT, LEAST_RECENT = 16, 5
# What is learned while the machine is slower than this is taken for what it is then.
WARM = 1.1
MAX_KINDS = 2048
# So many rows, and tiles of prompt tokens, are told apart exactly, more in steps.
EXACT, STEP = 16, 1.06
# Attention is a part of a pass, and with less context than this a small one.
LEAST_CONTEXT, CONTEXT_STEP = 1024, 1.1
# A machine that has nothing to do loses half of its slow-down in this time.
COOLING_S = 30.0
# What was seen before such a pause says nothing of now.
PAUSE_S = 5.0


class Kind(NamedTuple):
    """What passes have to have in common to be compared."""

    rows: int
    tiles: int
    context: int
    position: int

    @classmethod
    def of(cls, rows: int, tokens: int, context: int, pairs: float) -> Kind:
        """The kind of a pass; see `observe`."""
        tiles = -(-tokens // CHUNK_TILE)
        return cls(
            min(rows, EXACT) + steps(rows, EXACT, STEP),
            min(tiles, EXACT) + steps(tiles, EXACT, STEP),
            steps(context, LEAST_CONTEXT, CONTEXT_STEP),
            steps(pairs / tokens, LEAST_CONTEXT, CONTEXT_STEP) if tokens else 0,
        )


@dataclass
class Times:
    """How long passes of a kind take: those since the last median, and the best median, which was
    learned when the machine was at most `witness` times as slow as cool, so it can speak for no
    more than that."""

    since: list[float] = field(default_factory=list)
    best_s: float | None = None
    witness: float = math.inf


class CoolBaseline:
    """Learns what passes take, and compares. `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kinds: OrderedDict[Kind, Times] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last_s = now()
        self._slowdown = 1.0
        # What of it is in costs that are fitted to the same passes.
        self._fitted = 1.0

    @property
    def slowdown(self) -> float:
        """How many times as long passes take as when it was cool; 1 if unknown."""
        return max(1.0, 1.0 + (self._slowdown - 1.0) * self._uncooled)

    @property
    def relief(self) -> float:
        """By which factor passes should take longer now than costs say that are fitted to them; 1
        if all is as it was."""
        return self.slowdown / self._fitted

    @property
    def rested(self) -> bool:
        """Whether no pass has run for so long that the last ones say nothing of now."""
        return self._now() - self._last_s > PAUSE_S

    def forget_fit(self) -> None:
        """Costs are fitted to passes of a cool machine from now on."""
        self._fitted = 1.0

    def observe(
        self, *, rows: int, tokens: int, context: int, pairs: float, seconds: float
    ) -> None:
        """A pass of `rows` decoding rows, which have `context` tokens together, and `tokens` prompt
        tokens, which attention compared with `pairs` tokens; 0 seconds say that it was not
        measured."""
        if seconds <= 0 or rows + tokens <= 0:
            return
        self._wake()
        times = self._times_of(Kind.of(rows, tokens, context, pairs))
        ratio = self._slowdown
        if times.best_s is not None:
            ratio = min(seconds / times.best_s, times.witness)
            self._recent.append(ratio)
            if len(self._recent) >= LEAST_RECENT:
                self._slowdown = median(self._recent)
        self._fitted += (1 - FORGETTING) * (max(1.0, ratio) - self._fitted)
        times.since.append(seconds)
        if len(times.since) == GROUP:
            self._learn(times, median(times.since))
            times.since.clear()

    @property
    def _uncooled(self) -> float:
        return float(0.5 ** ((self._now() - self._last_s) / COOLING_S))

    def _wake(self) -> None:
        """Before a pass: what is left of the slow-down after a pause."""
        if self.rested:
            self._slowdown = self.slowdown
            self._recent.clear()
            for times in self._kinds.values():
                times.since.clear()
        self._last_s = self._now()

    def _times_of(self, kind: Kind) -> Times:
        times = self._kinds.setdefault(kind, Times())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)
        return times

    def _learn(self, times: Times, typical_s: float) -> None:
        if times.best_s is not None:
            times.best_s = min(times.best_s, typical_s)
        elif self._slowdown > WARM:
            times.best_s = typical_s / self._slowdown
            times.witness = self._slowdown
        else:
            times.best_s = typical_s


def steps(value: float, least: float, ratio: float) -> int:
    """How many times `ratio` a value is above `least`; 0 below it."""
    return int(math.log(value / least) / math.log(ratio)) if value > least else 0
