"""Latency against throughput: what a server gives at each load, and how long that takes."""

from __future__ import annotations

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.report.axis import axis_for
from mlxfleet.bench.report.figures import OUTPUT_RATE, REQUEST_RATE, name_of
from mlxfleet.bench.report.frame import (
    Frame,
    Point,
    colour,
    curve,
    figure,
    label,
    legend,
    legend_height,
    marker,
    picture,
)
from mlxfleet.bench.report.groups import Group, Load
from mlxfleet.bench.report.markup import Markup

WIDTH, HEIGHT = 540.0, 320.0
LEFT, RIGHT, TOP, FOOT = 56.0, 528.0, 34.0, 46.0
TIMES = (("TTFT", "time to first token"), ("TPOT", "time per output token after the first"))


def curves(group: Group) -> list[Markup]:
    """A picture for each time over each rate; none if there is one load only."""
    if len(group.loads) < 2:
        return []
    rates = (OUTPUT_RATE,) if in_streams(group) else (OUTPUT_RATE, REQUEST_RATE)
    return [
        figure(draw(group, rate, name), caption(rate, words))
        for rate in rates
        for name, words in TIMES
        if any(
            group.median(Figure(f"{name.lower()}_ms.p50"), s, group.loads[0]) for s in group.sides
        )
    ]


def in_streams(group: Group) -> bool:
    """Whether the loads are numbers of streams, where requests/s say nothing that tokens/s do
    not."""
    return all("stream" in load.words for load in group.loads)


def caption(rate: Figure, words: str) -> str:
    """What is seen."""
    return (
        f"{words[0].upper()}{words[1:]} against {name_of(rate)}. Solid: p50, dashed: p99; each"
        " point is a load, the median of its rounds. Lower and further right is better."
    )


def draw(group: Group, rate: Figure, name: str) -> Markup:
    """One picture."""
    p50, p99 = (Figure(f"{name.lower()}_ms.{part}") for part in ("p50", "p99"))
    lines = {(s, f): points_of(group, rate, f, s) for s in group.sides for f in (p50, p99)}
    every = [point for points in lines.values() for point, _ in points]
    legend_space = legend_height(group.sides, RIGHT - LEFT)
    frame = Frame(
        x=axis_for([x for x, _ in every], name_of(rate), zero=True, log=False),
        y=axis_for([y for _, y in every], f"{name}, ms", zero=True),
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=HEIGHT - FOOT,
    )
    parts: list[str] = [frame.grid()]
    for (side, which), points in lines.items():
        number = group.sides.index(side)
        pixels = [frame.at(*point) for point, _ in points]
        dashed = " dashed" if which is p99 else ""
        if len(pixels) > 1:
            parts.append(curve(pixels, f"line {colour(number)}{dashed}"))
        for pixel, (point, load) in zip(pixels, points, strict=True):
            words = f"{side}, {load.words}: {name_of(which)} {point[1]:,.1f} ms at {point[0]:,.1f}"
            parts.append(
                marker(pixel, number, f"{words} {name_of(rate)}", "hollow" if dashed else "")
            )
        if which is p50 and len(group.sides) == 1:
            parts += load_labels(pixels, [load for _, load in points])
    names = [(side, f"line {colour(number)}") for number, side in enumerate(group.sides)]
    title = f"{name} against {name_of(rate)}"
    height = HEIGHT + legend_space
    return picture(
        title,
        describe(lines, rate),
        WIDTH,
        height,
        *parts,
        legend(names, LEFT, HEIGHT + 6, RIGHT - LEFT),
    )


def load_labels(pixels: list[Point], loads: list[Load]) -> list[Markup]:
    """What load a point is, where there is only one line to write at."""
    return [
        label(x, y + 17, load.words.split()[0], "tick")
        for (x, y), load in zip(pixels, loads, strict=True)
    ]


def points_of(group: Group, rate: Figure, time: Figure, side: str) -> list[tuple[Point, Load]]:
    """Medians at each load that has both."""
    found = []
    for load in group.loads:
        x, y = group.median(rate, side, load), group.median(time, side, load)
        if x is not None and y is not None:
            found.append(((x, y), load))
    return found


def describe(lines: dict[tuple[str, Figure], list[tuple[Point, Load]]], rate: Figure) -> str:
    """The picture in words."""
    return " ".join(
        f"{side}, {name_of(which)}: "
        + "; ".join(
            f"{y:,.1f} ms at {x:,.1f} {name_of(rate)} ({load.words})" for (x, y), load in points
        )
        + "."
        for (side, which), points in lines.items()
    )
