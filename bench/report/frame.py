"""The frame of a picture: two axes with their grid, and what can be drawn inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlxfleet.bench.report.axis import Axis, short
from mlxfleet.bench.report.markup import Markup, join, tag

Point = tuple[float, float]

MARKER_SIZE = 4.0
COLOURS = 8
LEGEND_ROW = 18.0
CHARACTER = 6.9
LEGEND_KEY = 26.0


@dataclass(frozen=True)
class Frame:
    """Where values are in a picture: `left`, `top`, `right`, `bottom` in pixels."""

    x: Axis
    y: Axis
    left: float
    top: float
    right: float
    bottom: float

    def at(self, x: float, y: float) -> Point:
        """The pixel of a pair of values."""
        return self.across(x), self.up(y)

    def across(self, x: float) -> float:
        """The pixel from the left."""
        return self.left + self.x.share(x) * (self.right - self.left)

    def up(self, y: float) -> float:
        """The pixel from the top."""
        return self.bottom - self.y.share(y) * (self.bottom - self.top)

    def grid(self, *, x_labels: bool = True) -> Markup:
        """Lines at the ticks, their numbers, and what the axes are."""
        middle = (self.left + self.right) / 2
        x_ticks = [self._x_tick(value, x_labels) for value in self.x.ticks()]
        return tag(
            "g",
            *(self._y_tick(value) for value in self.y.ticks()),
            *x_ticks,
            line((self.left, self.bottom), (self.right, self.bottom), "axis"),
            label(self.left, self.top - 8, self.y.label, "axis-label", "start"),
            label(middle, self.bottom + 36, self.x.label, "axis-label") if x_labels else None,
        )

    def _y_tick(self, value: float) -> Markup:
        y = self.up(value)
        return join(
            (
                line((self.left, y), (self.right, y), "grid"),
                label(self.left - 7, y + 4, short(value), "tick", "end"),
            )
        )

    def _x_tick(self, value: float, labelled: bool) -> Markup:
        x = self.across(value)
        mark = line((x, self.top), (x, self.bottom), "grid")
        number = label(x, self.bottom + 17, short(value), "tick") if labelled else None
        return join((mark, number))


def line(start: Point, end: Point, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def label(x: float, y: float, words: str, class_: str, anchor: str = "middle") -> Markup:
    """A line of text."""
    return tag("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def curve(points: Sequence[Point], class_: str) -> Markup:
    """A line through pixels."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("polyline", points=places, class_=class_)


def area(points: Sequence[Point], floor: float, class_: str) -> Markup:
    """What is between a line through pixels and a horizontal one."""
    outline = [(points[0][0], floor), *points, (points[-1][0], floor)]
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
    return tag("polygon", points=places, class_=class_)


def steps(points: Sequence[Point]) -> list[Point]:
    """The corners of a line that keeps each value until the next one."""
    corners = [points[0]]
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def marker(at: Point, series: int, words: str = "", class_: str = "") -> Markup:
    """A point of a series, of a shape of its own; `words` show when it is pointed at."""
    x, y = at
    size = MARKER_SIZE
    classes = f"mark {colour(series)} {class_}".rstrip()
    note = tag("title", words) if words else None
    match series % 4:
        case 0:
            return tag("circle", note or None, cx=x, cy=y, r=size, class_=classes)
        case 1:
            side = 1.8 * size
            return tag(
                "rect",
                note,
                x=x - side / 2,
                y=y - side / 2,
                width=side,
                height=side,
                class_=classes,
            )
        case 2:
            corners = [(x, y - 1.3 * size), (x + 1.2 * size, y + size), (x - 1.2 * size, y + size)]
        case _:
            far = 1.35 * size
            corners = [(x, y - far), (x + far, y), (x, y + far), (x - far, y)]
    places = " ".join(f"{corner_x:.1f},{corner_y:.1f}" for corner_x, corner_y in corners)
    return tag("polygon", note, points=places, class_=classes)


def colour(series: int) -> str:
    """The class of a series' colour."""
    return f"s{series % COLOURS}"


def legend(names: Iterable[tuple[str, str]], left: float, top: float, width: float) -> Markup:
    """Names with the class of their line, in as many rows as they need."""
    x, y, parts = left, top, []
    for name, class_ in names:
        needed = LEGEND_KEY + CHARACTER * len(name) + 14
        if x > left and x + needed > left + width:
            x, y = left, y + LEGEND_ROW
        parts.append(line((x, y - 4), (x + LEGEND_KEY - 6, y - 4), class_))
        parts.append(label(x + LEGEND_KEY, y, name, "legend", "start"))
        x += needed
    return tag("g", *parts)


def legend_height(names: Sequence[str], width: float) -> float:
    """How high that legend is."""
    rows, x = 1, 0.0
    for name in names:
        needed = LEGEND_KEY + CHARACTER * len(name) + 14
        if x > 0 and x + needed > width:
            rows, x = rows + 1, 0.0
        x += needed
    return rows * LEGEND_ROW


def picture(title: str, description: str, width: float, height: float, *parts: str) -> Markup:
    """An SVG picture that says in words what it shows."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
    )


def figure(svg: Markup, caption: str, *, wide: bool = False) -> Markup:
    """A picture with what it is under it."""
    return tag("figure", svg, tag("figcaption", caption), class_="wide" if wide else None)
