"""Comparisons: the ratio of every pair of rounds, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mlxfleet.bench.records import Round, Verdict
from mlxfleet.bench.report.axis import axis_for
from mlxfleet.bench.report.frame import Frame, colour, figure, label, line, marker, picture
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison
from mlxfleet.bench.report.markup import Markup, tag
from mlxfleet.bench.summary_figures import FIGURES, figure_at

WIDTH, LEFT, RIGHT = 1100.0, 250.0, 930.0
TOP, ROW, FOOT = 34.0, 40.0, 48.0
# Points of one row are set apart, so that equal ones are all seen.
SPREAD = 13.0


@dataclass(frozen=True)
class Pair:
    """A pair of rounds: `ratio` of the side's figure to the first side's, so arranged that more
    than 1 is better."""

    number: int
    block: int
    ratio: float
    thrown_out: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the picture."""

    name: str
    pairs: list[Pair]
    verdict: Verdict | None = None


def forests(loaded: Loaded) -> list[Markup]:
    """For each comparison and side, all figures; the one that was compared has the interval."""
    return [
        figure(draw(found, verdict, rows), caption(verdict), wide=True)
        for found in loaded.comparisons
        for verdict in found.verdicts
        if (rows := rows_of(loaded, found, verdict))
    ]


def caption(verdict: Verdict) -> str:
    """What is seen."""
    return (
        f"{verdict.side} against {verdict.against}: each point is a pair of rounds, the tick their"
        f" middle, the bar the {verdict.confidence:.0%} interval of the ratio;"
        " crossed points were thrown out and do not count. Right of 1 is better."
        " Figures without a bar were not what was compared."
    )


def rows_of(loaded: Loaded, found: LoadedComparison, verdict: Verdict) -> list[Row]:
    """The compared figure first, then the others that both sides have."""
    compared = figure_at(found.comparison.figure)
    higher = found.comparison.higher_is_better
    values = {one.run: one.value for one in found.rounds}
    rows = [Row(compared.name, pairs_of(found.rounds, verdict, values, higher), verdict)]
    summaries = {one.run.id: summary for one, summary in loaded.finished}
    for other in FIGURES:
        if other.path != compared.path:
            values = {run: other.of(summary) for run, summary in summaries.items()}
            pairs = pairs_of(found.rounds, verdict, values, other.higher_is_better)
            rows.append(Row(other.name, pairs))
    return [row for row in rows if row.pairs]


def pairs_of(
    rounds: Sequence[Round], verdict: Verdict, values: dict[str, float | None], higher: bool
) -> list[Pair]:
    """Ratios of rounds with the same number, also of those that were thrown out."""
    pairs = []
    bases = [one for one in rounds if one.side == verdict.against]
    for own in (one for one in rounds if one.side == verdict.side):
        base = partner(own, bases)
        value, against = values.get(own.run), values.get(base.run) if base else None
        if base is None or not value or not against:
            continue
        ratio = value / against if higher else against / value
        pairs.append(Pair(own.number, own.block, ratio, own.thrown_out or base.thrown_out))
    return pairs


def partner(own: Round, bases: Sequence[Round]) -> Round | None:
    """The round of the first side that a round is compared with: of its number, one that counts if
    there is one."""
    same = [one for one in bases if one.number == own.number]
    if own.thrown_out:
        return next((one for one in same if one.thrown_out), same[0] if same else None)
    return next((one for one in reversed(same) if not one.thrown_out), None)


def draw(found: LoadedComparison, verdict: Verdict, rows: Sequence[Row]) -> Markup:
    """The picture."""
    number = list(found.comparison.sides).index(verdict.side)
    ratios = [pair.ratio for row in rows for pair in row.pairs]
    bottom = TOP + ROW * len(rows)
    frame = Frame(
        x=axis_for([*ratios, verdict.low, verdict.high, 1.0], "ratio, more is better", log=False),
        y=axis_for([0.0, 1.0], "", log=False),
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=bottom,
    )
    one = frame.across(1.0)
    title = f"{verdict.side} against {verdict.against}"
    return picture(
        title,
        describe(verdict, rows),
        WIDTH,
        bottom + FOOT,
        Markup("".join(x_grid(frame))),
        line((one, TOP - 6), (one, bottom), "one"),
        *(
            draw_row(frame, row, TOP + ROW * (place + 0.5), number)
            for place, row in enumerate(rows)
        ),
    )


def x_grid(frame: Frame) -> list[Markup]:
    """The grid without a vertical axis."""
    parts = [line((frame.left, frame.bottom), (frame.right, frame.bottom), "axis")]
    for value in frame.x.ticks():
        x = frame.across(value)
        parts.append(line((x, frame.top), (x, frame.bottom), "grid"))
        parts.append(label(x, frame.bottom + 17, f"{value:.4g}", "tick"))
    middle = (frame.left + frame.right) / 2
    return [*parts, label(middle, frame.bottom + 38, frame.x.label, "axis-label")]


def draw_row(frame: Frame, row: Row, y: float, number: int) -> Markup:
    """A figure: its points, and the interval or only the middle."""
    parts: list[str] = [label(frame.left - 12, y + 4, row.name, "row", "end")]
    verdict, middle = row.verdict, median_of(row.pairs)
    for place, pair in enumerate(row.pairs):
        at = frame.across(pair.ratio), y + SPREAD * (place % 5 / 4 - 0.5)
        words = f"pair {pair.number}, block {pair.block}: {pair.ratio:.4f}"
        if pair.thrown_out:
            parts.append(cross(at, f"{words}, thrown out: {pair.thrown_out}"))
        else:
            parts.append(marker(at, number, words, "faint"))
    if verdict is not None:
        low, high = frame.across(verdict.low), frame.across(verdict.high)
        parts.append(line((low, y), (high, y), f"interval {colour(number)}"))
        middle = verdict.ratio
        words = f"{verdict.ratio:.3f} ({verdict.low:.3f} to {verdict.high:.3f})"
    else:
        words = "" if middle is None else f"{middle:.3f}"
    if middle is not None:
        x = frame.across(middle)
        parts.append(line((x, y - 11), (x, y + 11), f"middle {colour(number)}"))
    parts.append(label(frame.right + 12, y + 4, words, "row", "start"))
    return tag("g", *parts)


def cross(at: tuple[float, float], words: str) -> Markup:
    """A pair that does not count."""
    x, y = at
    return tag(
        "g",
        tag("title", words),
        line((x - 4, y - 4), (x + 4, y + 4), "cross"),
        line((x - 4, y + 4), (x + 4, y - 4), "cross"),
    )


def median_of(pairs: Sequence[Pair]) -> float | None:
    """Of the ratios that count."""
    ratios = [pair.ratio for pair in pairs if not pair.thrown_out]
    return median(ratios) if ratios else None


def describe(verdict: Verdict, rows: Sequence[Row]) -> str:
    """The picture in words."""
    found = (
        f"{row.name}: {median_of(row.pairs):.3f} over"
        f" {sum(not pair.thrown_out for pair in row.pairs)} pairs."
        for row in rows
        if median_of(row.pairs) is not None
    )
    interval = f"Ratio {verdict.ratio:.3f}, {verdict.low:.3f} to {verdict.high:.3f}."
    return " ".join([interval, *found])
