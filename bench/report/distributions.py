"""Distributions of times: which share of them was at most so long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from mlxfleet.bench.records import Request
from mlxfleet.bench.report.axis import axis_for
from mlxfleet.bench.report.frame import (
    Frame,
    Point,
    colour,
    curve,
    figure,
    label,
    legend,
    legend_height,
    line,
    picture,
    steps,
)
from mlxfleet.bench.report.groups import Group
from mlxfleet.bench.report.loaded import successes
from mlxfleet.bench.report.markup import Markup

WIDTH, HEIGHT = 400.0, 270.0
LEFT, RIGHT, TOP, FOOT = 48.0, 390.0, 34.0, 46.0
MS = 1000.0
# Corners of a curve: more would not be seen, and files stay small.
POINTS = 160
MAX_CURVES = 8

T = TypeVar("T")


def times_to_first_token(requests: Sequence[Request]) -> list[float]:
    """In ms."""
    return [request.token_times_s[0] * MS for request in requests if request.token_times_s]


def gaps(requests: Sequence[Request]) -> list[float]:
    """Between chunks with text, in ms."""
    return [
        (later - earlier) * MS
        for request in requests
        for earlier, later in pairwise(request.token_times_s)
    ]


def durations(requests: Sequence[Request]) -> list[float]:
    """Of whole requests, in ms."""
    return [request.duration_s * MS for request in requests]


KINDS: list[tuple[str, str, Callable[[Sequence[Request]], list[float]]]] = [
    ("TTFT", "Time to first token", times_to_first_token),
    ("ITL", "Gaps between chunks with text", gaps),
    ("E2E", "Whole requests", durations),
]


def distributions(group: Group) -> list[Markup]:
    """Pictures of every kind of time: for each load one curve a side, or of a single side one
    curve a load."""
    if len(group.sides) == 1:
        side = group.sides[0]
        loads = evenly(group.loads, MAX_CURVES)
        named = {load.words: [one.requests for one, _ in group.at(side, load)] for load in loads}
        return draw_kinds(named, "")
    pictures = []
    for load in group.loads:
        named = {s: [one.requests for one, _ in group.at(s, load)] for s in group.sides}
        pictures += draw_kinds(named, load.words)
    return pictures


def draw_kinds(named: dict[str, list[list[Request]]], where: str) -> list[Markup]:
    """A picture for each kind of time that there is."""
    pictures = []
    for name, words, times_of in KINDS:
        curves = {
            line_name: sorted(time for run in runs for time in times_of(successes(run)))
            for line_name, runs in named.items()
        }
        if any(curves.values()):
            title = f"{name}, {where}" if where else name
            pictures.append(figure(draw(title, curves), f"{words}{', ' + where if where else ''}."))
    return pictures


def draw(title: str, curves: dict[str, list[float]]) -> Markup:
    """Cumulative shares; `curves` are ascending, in ms."""
    ends = [time for times in curves.values() if times for time in (times[0], times[-1])]
    frame = Frame(
        x=axis_for(ends, "ms"),
        y=axis_for([0.0, 100.0], "% of them at most so long", zero=True, log=False),
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=HEIGHT - FOOT,
    )
    parts: list[str] = [frame.grid()]
    for share in (50, 99):
        y = frame.up(share)
        parts.append(line((LEFT, y), (RIGHT, y), "guide"))
        parts.append(label(RIGHT - 3, y - 4, f"p{share}", "tick", "end"))
    for number, times in enumerate(curves.values()):
        if times:
            pixels = [frame.at(*point) for point in cumulative(times)]
            parts.append(curve(steps(pixels), f"line {colour(number)}"))
    width = RIGHT - LEFT
    names = [(name, f"line {colour(number)}") for number, name in enumerate(curves)]
    shown = legend(names, LEFT, HEIGHT + 6, width) if len(names) > 1 else None
    height = HEIGHT + (legend_height(list(curves), width) if shown else 0)
    return picture(f"Distribution of {title}", describe(curves), WIDTH, height, *parts, shown or "")


def cumulative(times: Sequence[float], points: int = POINTS) -> list[Point]:
    """Pairs of a time and the share of times, in %, that are at most as long; `times` ascend."""
    count = len(times)
    ranks = sorted({round(rank * (count - 1) / max(points - 1, 1)) for rank in range(points)})
    return [(times[0], 0.0), *((times[rank], 100.0 * (rank + 1) / count) for rank in ranks)]


def describe(curves: dict[str, list[float]]) -> str:
    """The picture in words."""
    return " ".join(
        f"{name}: {len(times):,} times, half of them up to {times[(len(times) - 1) // 2]:,.1f} ms,"
        f" the longest {times[-1]:,.1f} ms."
        for name, times in curves.items()
        if times
    )


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most so many of them, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
