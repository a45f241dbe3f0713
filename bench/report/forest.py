"""Comparisons as pictures: the ratio of every block, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxfleet.bench.report.axis import axis_for
from mlxfleet.bench.report.block_ratios import Row, rows_of
from mlxfleet.bench.report.figures import name_of
from mlxfleet.bench.report.frame import Frame, Point, colour, figure, label, line, marker, picture
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison
from mlxfleet.bench.report.markup import Markup, join, tag

WIDTH, LEFT, RIGHT = 1100.0, 200.0, 920.0
TOP, ROW, FOOT = 34.0, 40.0, 48.0
# Points of one row are set apart, so that equal ones are all seen.
SPREAD = 13.0


def forests(loaded: Loaded) -> list[Markup]:
    """For each comparison and side a picture of all figures."""
    return [
        figure(draw(found, side, rows), caption(found, side), wide=True)
        for found in loaded.comparisons
        for side in list(found.comparison.sides)[1:]
        if (rows := rows_of(loaded, found, side))
    ]


def caption(found: LoadedComparison, side: str) -> str:
    """What is seen."""
    return (
        f"{title(found, side)}: each point is a block, the tick their middle, the bar the interval"
        " of the ratio; crosses are rounds that were thrown out and do not count. Right of 1 is"
        " better. Figures without a bar are not what was compared."
    )


def title(found: LoadedComparison, side: str) -> str:
    """Who is compared with whom."""
    return f"{side} against {next(iter(found.comparison.sides))}"


def draw(found: LoadedComparison, side: str, rows: Sequence[Row]) -> Markup:
    """The picture."""
    number = list(found.comparison.sides).index(side)
    ends = [ratio.value for row in rows for ratio in row.ratios]
    for row in rows:
        if row.verdict is not None:
            ends += [row.verdict.low, row.verdict.high]
    bottom = TOP + ROW * len(rows)
    frame = Frame(
        x=replace(axis_for([*ends, 1.0], "ratio, more is better", log=False), count=8),
        y=axis_for([0.0, 1.0], "", log=False),
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=bottom,
    )
    one = frame.across(1.0)
    return picture(
        title(found, side),
        describe(rows),
        WIDTH,
        bottom + FOOT,
        x_grid(frame),
        line((one, TOP - 6), (one, bottom), "one"),
        *(draw_row(frame, row, TOP + ROW * (i + 0.5), number) for i, row in enumerate(rows)),
    )


def x_grid(frame: Frame) -> Markup:
    """The grid without a vertical axis."""
    parts = [line((frame.left, frame.bottom), (frame.right, frame.bottom), "axis")]
    for value in frame.x.ticks():
        x = frame.across(value)
        parts.append(line((x, frame.top), (x, frame.bottom), "grid"))
        parts.append(label(x, frame.bottom + 17, f"{value:.4g}", "tick"))
    middle = (frame.left + frame.right) / 2
    return join([*parts, label(middle, frame.bottom + 38, frame.x.label, "axis-label")])


def draw_row(frame: Frame, row: Row, y: float, number: int) -> Markup:
    """A figure: its points, the interval if there is one, and the middle."""
    parts = [label(frame.left - 12, y + 4, name_of(row.figure), "row", "end")]
    if (verdict := row.verdict) is not None:
        low, high = frame.across(verdict.low), frame.across(verdict.high)
        parts.append(line((low, y), (high, y), f"interval {colour(number)}"))
    for place, ratio in enumerate(row.ratios):
        at = frame.across(ratio.value), y + SPREAD * (place % 5 / 4 - 0.5)
        words = f"block {ratio.block}: {ratio.value:.4f}"
        if ratio.thrown_out:
            parts.append(cross(at, f"{words}, thrown out: {ratio.thrown_out}"))
        else:
            parts.append(marker(at, number, words, "faint"))
    if (middle := row.middle) is not None:
        x = frame.across(middle)
        parts.append(line((x, y - 11), (x, y + 11), f"middle {colour(number)}"))
    return tag("g", *parts, label(frame.right + 12, y + 4, words_of(row), "row", "start"))


def words_of(row: Row) -> str:
    """A row's figures."""
    if (verdict := row.verdict) is not None:
        return f"{verdict.ratio:.3f} ({verdict.low:.3f} to {verdict.high:.3f})"
    return "" if row.middle is None else f"{row.middle:.3f}"


def cross(at: Point, words: str) -> Markup:
    """A round that does not count."""
    x, y = at
    return tag(
        "g",
        tag("title", words),
        line((x - 4, y - 4), (x + 4, y + 4), "cross"),
        line((x - 4, y + 4), (x + 4, y - 4), "cross"),
    )


def describe(rows: Sequence[Row]) -> str:
    """The picture in words."""
    return " ".join(
        f"{name_of(row.figure)}: {words_of(row)} over"
        f" {sum(not ratio.thrown_out for ratio in row.ratios)} blocks."
        for row in rows
    )
