"""Verdicts for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.sides import Side
from mlxfleet.bench.compare.verdict import Turn
from mlxfleet.bench.records import Verdict


def sides_table(sides: Sequence[Side], turns: Sequence[Turn], figures: Sequence[Figure]) -> Table:
    """What each side is, and its figures."""
    table = Table("side", "what", title="Sides, with geometric means over the turns that count")
    for figure in figures:
        table.add_column(figure.path, justify="right")
    for side in sides:
        own = [turn.summary for turn in turns if turn.side == side.name]
        values = [[v for s in own if (v := figure.of(s)) is not None] for figure in figures]
        table.add_row(side.name, side.given, *(geometric_mean(found) for found in values))
    return table


def geometric_mean(values: Sequence[float]) -> str:
    """As text; a dash if there are no values."""
    return f"{math.exp(fmean(map(math.log, values))):,.2f}" if values else "-"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Ratios and what they show."""
    table = Table(
        title="Ratios to the first side, more than 1 is better",
        caption="visible: the true difference that 80 of 100 runs like this one would show",
    )
    for heading in ("side", "figure", "ratio", "interval", "sure", "verdict", "visible"):
        table.add_column(heading, justify="left" if heading in ("side", "figure") else "right")
    for found in verdicts:
        table.add_row(
            f"{found.side} / {found.against}",
            found.figure,
            f"{found.ratio:.3f}",
            f"{found.low:.3f} to {found.high:.3f}",
            f"{found.confidence:.2%}",
            found.verdict,
            f"{found.smallest_visible:.1%}",
        )
    return table
